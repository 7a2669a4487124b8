"""Copies of a run's state in host memory, on their way while training goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Tensors begin at multiples of it in a buffer [bytes].
ALIGNMENT = 64


@dataclass(frozen=True)
class HostTensors:
    """Tensors in host memory once `wait` has returned them. arrival: of what comes from a GPU, None if all is there."""

    tensors: dict[str, Tensor]
    arrival: torch.cuda.Event | None = None

    def wait(self) -> dict[str, Tensor]:
        """The tensors; waits until they have arrived. For the thread that writes them."""
        if self.arrival:
            self.arrival.synchronize()
        return self.tensors


class HostCopies:
    """Copies tensors to host memory without a wait, so that training may change them at once.

    Those on a GPU are copied within it first, in line with training's own work; a stream of its own then takes the copy
    to pinned memory beside the next steps. That memory is used again: a copy is valid until the next one is started.
    """

    def __init__(self) -> None:
        self._pinned: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def start(self, tensors: Mapping[str, Tensor]) -> HostTensors:
        """Start to copy tensors of any device."""
        on_gpu = {key: tensor.detach() for key, tensor in tensors.items() if _is_on_gpu(tensor)}
        copies = {key: tensor.detach().clone() for key, tensor in tensors.items() if key not in on_gpu}
        if not on_gpu:
            return HostTensors(copies)
        try:
            within = self._allocate(on_gpu)
        except RuntimeError:  # no such memory is left, on the GPU or pinned: training waits for the copy
            return HostTensors(copies | {key: tensor.to("cpu", copy=True) for key, tensor in on_gpu.items()})
        assert self._stream and self._pinned is not None
        torch._foreach_copy_(list(_views(within, on_gpu).values()), list(on_gpu.values()))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._pinned.copy_(within, non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record()
        within.record_stream(self._stream)  # its memory is not given to others before
        return HostTensors(copies | _views(self._pinned, on_gpu), arrival)

    def _allocate(self, on_gpu: Mapping[str, Tensor]) -> Tensor:
        """Memory for all of them in a row, pinned if there is none of this size, and on their GPU, uint8 (size,)."""
        size = sum(map(_room, on_gpu.values()))
        if self._pinned is None or len(self._pinned) != size:
            self._pinned = _pinned_memory(size)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return torch.empty(size, dtype=torch.uint8, device=next(iter(on_gpu.values())).device)


def _views(buffer: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts of a buffer, uint8 (size,), as tensors like the given ones."""
    parts = torch.split(buffer, [_room(tensor) for tensor in tensors.values()])
    return {
        key: part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for part, (key, tensor) in zip(parts, tensors.items(), strict=True)
    }


def _room(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _pinned_memory(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
