"""BatchNorm's statistics of several networks, kept before a step and taken back where it was not finite."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Buffers start at multiples of it [bytes], as compiled code expects of tensors.
ALIGNMENT = 64


class Statistics:
    """The buffers of networks, which become views of one flat tensor of each type: one launch copies them all."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        places: dict[torch.dtype, list[tuple[nn.Module, str, Tensor]]] = defaultdict(list)
        for module in (module for network in networks for module in network.modules()):
            for name, buffer in module.named_buffers(recurse=False):
                places[buffer.dtype].append((module, name, buffer))
        self._live = [_flattened(of_type) for of_type in places.values()]
        self._kept = [flat.clone() for flat in self._live]

    def keep(self) -> None:
        """Keep a copy, before a step."""
        for kept, live in zip(self._kept, self._live, strict=True):
            kept.copy_(live)

    def take_back(self, bad: Tensor) -> None:
        """Restore what was kept where `bad`, a bool tensor (), is true."""
        for kept, live in zip(self._kept, self._live, strict=True):
            torch.where(bad, kept, live, out=live)


def _flattened(places: list[tuple[nn.Module, str, Tensor]]) -> Tensor:
    """Replace buffers of one type by views of one flat tensor, which is returned."""
    first = places[0][2]
    step = ALIGNMENT // first.element_size()
    rooms = [-(-buffer.numel() // step) * step for _, _, buffer in places]
    flat = torch.zeros(sum(rooms), dtype=first.dtype, device=first.device)
    for (module, name, buffer), room in zip(places, torch.split(flat, rooms), strict=True):
        view = room[: buffer.numel()].view(buffer.shape)
        setattr(module, name, view.copy_(buffer))
    return flat
