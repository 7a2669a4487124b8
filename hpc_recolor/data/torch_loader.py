"""Samples -> batches through torch's DataLoader and Pillow, where DALI is not installed."""

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
from hpc_recolor.runtime.signals import SIGNALS

# (sample number, flip horizontally, flip vertically)
SampleRequest = tuple[int, bool, bool]
# (images, numbers, why samples could not be read by number)
LoadedBatch = tuple[torch.Tensor, torch.Tensor, dict[int, str]]


def torch_batches(reader: SampleReader, draw_batch: DrawBatch, data: DataConfig, world: World) -> Generator[Batch]:
    """Batches without end: batch k has the samples, and the flips, of draw_batch(k).

    From raw shards they equal DALI's to the bit. Photographs are resized by Pillow, as `prepare` does, and not by DALI:
    both use a triangle filter and differ by rounding. Workers import the main script anew, so a script that calls this
    needs `if __name__ == "__main__"`. Raises RankError if too many samples cannot be read.
    """
    on_gpu = world.device.type == "cuda"
    # Forked workers would copy a process with threads and a GPU. The fork server imports torch once for all of them.
    workers = multiprocessing.get_context("forkserver")
    workers.set_forkserver_preload([__name__])
    loader: DataLoader[LoadedBatch] = DataLoader(
        _RequestedSamples(reader.samples, data),
        batch_sampler=_requests(draw_batch),  # endless, and so not a Sampler
        num_workers=data.threads,
        collate_fn=_identity,
        pin_memory=on_gpu,
        multiprocessing_context=workers,
        generator=torch.Generator(),  # else it would draw from the one that training uses
    )
    with _signals_blocked():
        batches = iter(loader)
    for images, numbers, failures in batches:
        for number, reason in failures.items():
            reader.report(number, reason)
        yield Batch(rgb_u8_NHWC=images.to(world.device, non_blocking=on_gpu), numbers=numbers)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started within never get the signals that stop a run.

    Schedulers signal all processes of a rank, and a rank that stops needs its workers until it has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _requests(draw_batch: DrawBatch) -> Iterator[list[SampleRequest]]:
    for iteration in count():
        numbers, flips = draw_batch(iteration)
        yield [(number, *flip) for number, flip in zip(numbers.tolist(), flips.tolist(), strict=True)]


def _identity(loaded: Any) -> Any:  # __getitems__ returns a whole batch
    return loaded


class _RequestedSamples(Dataset[LoadedBatch]):
    def __init__(self, samples: Samples, data: DataConfig) -> None:
        self.samples, self.square = samples, SquareFit(size=data.size, fit=data.fit)

    def __getitems__(self, requests: list[SampleRequest]) -> LoadedBatch:
        failures: dict[int, str] = {}
        images, numbers = [], []
        for wanted, horizontal, vertical in requests:
            number, pixels = first_readable(wanted, len(self.samples), self._pixels, failures.__setitem__)
            images.append(flipped(pixels, horizontal, vertical))
            numbers.append(number)
        return torch.from_numpy(np.stack(images)), torch.tensor(numbers), failures

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        content = self.samples.read(number)
        return content if self.samples.kind == "raw" else to_square(content.tobytes(), self.square)
