"""Samples -> batches through torch's DataLoader and Pillow, where DALI is missing."""

import multiprocessing
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hpc_recolor.config import DataConfig
from hpc_recolor.data.batch import Batch, flipped
from hpc_recolor.data.order import DrawBatch
from hpc_recolor.data.photo import SquareFit, to_square
from hpc_recolor.data.samples import SampleReader, Samples, first_readable
from hpc_recolor.runtime.distributed import World

Place = tuple[int, bool, bool]
Loaded = tuple[torch.Tensor, torch.Tensor, dict[int, str]]


def torch_batches(unreadable: SampleReader, draw: DrawBatch, data: DataConfig, world: World) -> Generator[Batch]:
    """Batches of pictures for ever: batch k has the samples, and the flips, of draw(k).

    From raw shards they are DALI's to the bit. Photographs are resized by Pillow, as `prepare` does, and not by DALI:
    both take a triangle filter and differ by rounding. Workers import the main script anew: one that calls this needs
    `if __name__ == "__main__"`.
    """
    on_gpu = world.device.type == "cuda"
    # Workers by fork would copy a process that has threads and a GPU. This server imports torch once for all of them.
    workers = multiprocessing.get_context("forkserver")
    workers.set_forkserver_preload([__name__])
    loader: DataLoader[Loaded] = DataLoader(
        _Pictures(unreadable.samples, data),
        batch_sampler=_places(draw),  # endless, and so not a Sampler
        num_workers=data.threads,
        collate_fn=_as_it_is,
        pin_memory=on_gpu,
        multiprocessing_context=workers,
        generator=torch.Generator(),  # or it would draw from the one that training uses
    )
    with _signals_held_back():
        batches = iter(loader)
    for pictures, numbers, failures in batches:
        for number, reason in failures.items():
            unreadable.report(number, reason)
        yield Batch(pictures.to(world.device, non_blocking=on_gpu), numbers)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """What starts meanwhile never gets them: schedulers signal all processes of a rank, and a rank that is told to stop
    still needs its workers until it has saved."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _places(draw: DrawBatch) -> Iterator[list[Place]]:
    for iteration in count():
        numbers, flips = draw(iteration)
        yield [(number, *flip) for number, flip in zip(numbers.tolist(), flips.tolist(), strict=True)]


def _as_it_is(loaded: Any) -> Any:  # __getitems__ has made the batch
    return loaded


class _Pictures(Dataset[Loaded]):
    def __init__(self, samples: Samples, data: DataConfig) -> None:
        self.samples, self.square = samples, SquareFit(data.size, data.fit)

    def __getitems__(self, places: list[Place]) -> Loaded:
        failures: dict[int, str] = {}
        pictures, numbers = [], []
        for wanted, horizontal, vertical in places:
            number, pixels = first_readable(wanted, len(self.samples), self._pixels, failures.__setitem__)
            pictures.append(flipped(pixels, horizontal, vertical))
            numbers.append(number)
        return torch.from_numpy(np.stack(pictures)), torch.tensor(numbers), failures

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        content = self.samples.read(number)
        return content if self.samples.kind == "raw" else to_square(content.tobytes(), self.square)
