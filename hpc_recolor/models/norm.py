"""Normalization layers, including one that synchronizes statistics over all ranks."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor, nn

from hpc_recolor.config import NormName


def make_norm(norm: NormName, channels: int) -> nn.Module:
    """The normalization layer of that name. `sync_batch` is for CPUs; `build.place` converts it to torch's on GPUs."""
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return (CrossRankBatchNorm2d if norm == "sync_batch" else nn.BatchNorm2d)(channels)


class CrossRankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks together, for CPU tensors, which torch.nn.SyncBatchNorm refuses.

    Ranks must hold batches of equal shape. Gradients flow through the statistics of all ranks.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N,C,H,W) per channel, by statistics over all ranks in training and by running ones otherwise."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        ranks = dist.get_world_size()
        # Two passes: the variance from sums of squares would lose precision where the mean is large.
        mean = _sum_over_ranks(input.mean((0, 2, 3))) / ranks
        centered = input - mean.view(1, -1, 1, 1)
        variance = _sum_over_ranks(centered.square().mean((0, 2, 3))) / ranks
        self._track(mean.detach(), variance.detach(), input.numel() // input.shape[1] * ranks)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result: Tensor = centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result

    def _track(self, mean: Tensor, variance: Tensor, values: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (values / max(1, values - 1)), self.momentum)
        self.num_batches_tracked += 1


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    """A differentiable all-reduce (sum)."""
    total: Tensor = torch.distributed.nn.functional.all_reduce(tensor)  # type: ignore[no-untyped-call]
    return total
