"""Averages gradients over ranks during the backward pass, for ZeRO 0."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Gradients of at least this many elements are reduced alone, as soon as they are computed; the others together, at the
# end.
ALONE_NUMEL = 100_000


class GradientAverage:
    """Averages a network's gradients in place.

    DeepSpeed at ZeRO 0 starts after the backward pass, and copies all gradients to a buffer and back. torch's
    DistributedDataParallel overlaps both, but rebuilds its buckets after the first step: on three ranks or more a
    resumed run would then sum in another order than one that was never stopped. Here the order is always the same.
    """

    def __init__(self, network: nn.Module, ranks: int) -> None:
        self.ranks = ranks
        self.parameters = list(network.parameters())
        self.small = [parameter for parameter in self.parameters if parameter.numel() < ALONE_NUMEL]
        self.pending: list[Any] = []
        self.is_last_microbatch = True
        for parameter in self.parameters:
            if parameter.numel() >= ALONE_NUMEL:
                parameter.register_post_accumulate_grad_hook(self._start)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Reduce the small gradients and wait for all; afterwards every gradient is the mean over the ranks."""
        gradients = [parameter.grad for parameter in self.small if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        )
        for work in self.pending:
            work.wait()
        self.pending.clear()
        everything = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_div_(everything, self.ranks)

    def _start(self, parameter: Tensor) -> None:
        if self.is_last_microbatch and parameter.grad is not None:
            self.pending.append(dist.all_reduce(parameter.grad, async_op=True))
