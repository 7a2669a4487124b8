"""Gradients averaged over ranks beside the backward pass, for ZeRO 0."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Larger gradients travel alone, as soon as they are there; the others together, in the end.
ALONE_NUMEL = 100_000


class GradientAverage:
    """Averages a network's gradients in place.

    DeepSpeed at ZeRO 0 begins when the backward pass has ended, and copies all gradients there and back. torch's
    DistributedDataParallel does not, but lays its buckets out anew after its first step: on three ranks and more a run
    that goes on would then have other sums than one that was never stopped. Here they are always the same.
    """

    def __init__(self, network: nn.Module, ranks: int) -> None:
        self.ranks = ranks
        self.parameters = list(network.parameters())
        self.small = [parameter for parameter in self.parameters if parameter.numel() < ALONE_NUMEL]
        self.under_way: list[Any] = []
        self.is_last_part = True
        for parameter in self.parameters:
            if parameter.numel() >= ALONE_NUMEL:
                parameter.register_post_accumulate_grad_hook(self._send)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Wait until all gradients are means over the ranks."""
        gradients = [parameter.grad for parameter in self.small if parameter.grad is not None]
        together = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(together)
        parts = torch.split(together, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])
        for work in self.under_way:
            work.wait()
        self.under_way.clear()
        everything = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_div_(everything, self.ranks)

    def _send(self, parameter: Tensor) -> None:
        if self.is_last_part and parameter.grad is not None:
            self.under_way.append(dist.all_reduce(parameter.grad, async_op=True))
