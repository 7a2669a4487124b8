"""Samples -> batches through torch's DataLoader and Pillow, where DALI is not installed."""

import multiprocessing
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from multiprocessing.context import BaseContext
from pathlib import Path
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
from hpc_recolor.data.shards import pixel_bytes
from hpc_recolor.runtime.distributed import World, ranks_here
from hpc_recolor.runtime.errors import RankError
from hpc_recolor.runtime.signals import SIGNALS

# (sample number, flip horizontally, flip vertically)
SampleRequest = tuple[int, bool, bool]
# (images, numbers, why samples could not be read by number); workers pass tensors in shared memory, arrays in pipes
LoadedBatch = tuple[torch.Tensor | NDArray[np.uint8], torch.Tensor | NDArray[np.int64], dict[int, str]]

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches of each worker


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
    batch_bytes = len(draw_batch(0)[0]) * pixel_bytes(data.size)
    through_pipes = not _has_shared_memory((data.threads * PREFETCHED + 1) * batch_bytes * ranks_here())
    if through_pipes:
        with _signals_blocked():  # of the process that keeps track of them
            _check_semaphores(workers, data.threads)
    if through_pipes and world.is_main:
        _print_once(f"{SHARED_MEMORY} is too small for batches: they take the slower way, through pipes")
    loader: DataLoader[LoadedBatch] = DataLoader(
        _RequestedSamples(reader.samples, data, through_pipes),
        batch_sampler=_requests(draw_batch),  # endless, and so not a Sampler
        num_workers=data.threads,
        prefetch_factor=PREFETCHED,
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
        images, numbers = (torch.as_tensor(values) for values in (images, numbers))
        yield Batch(rgb_u8_NHWC=images.to(world.device, non_blocking=on_gpu), numbers=numbers)


@cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)


def _check_semaphores(workers: BaseContext, count: int) -> None:
    """Raise RankError if there is no room for those of the queues, which are files in shared memory, too.

    torch makes the same ones, but leaves a traceback behind where it fails.
    """
    try:
        _ = workers.Event(), [workers.Queue() for _ in range(count + 1)]
    except OSError as error:
        problem = f"its workers cannot be started ({error.strerror}: {SHARED_MEMORY})"
        fix = "mount it larger (docker run --shm-size=1g), or use fewer threads"
        raise RankError(f"data.threads={count}", problem, fix) from None


def _has_shared_memory(size_bytes: int) -> bool:
    """Whether tensors of so many bytes can be passed in shared memory. A worker that finds it full is killed."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free >= size_bytes
    except OSError:
        return False


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
    def __init__(self, samples: Samples, data: DataConfig, as_arrays: bool) -> None:
        self.as_arrays = as_arrays
        self.samples, self.square = samples, SquareFit(size=data.size, fit=data.fit)

    def __getitems__(self, requests: list[SampleRequest]) -> LoadedBatch:
        failures: dict[int, str] = {}
        images, numbers = [], []
        for wanted, horizontal, vertical in requests:
            number, pixels = first_readable(wanted, len(self.samples), self._pixels, failures.__setitem__)
            images.append(flipped(pixels, horizontal, vertical))
            numbers.append(number)
        stacked, indexes = np.stack(images), np.array(numbers)
        if self.as_arrays:
            return stacked, indexes, failures
        return torch.from_numpy(stacked), torch.from_numpy(indexes), failures

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        content = self.samples.read(number)
        return content if self.samples.kind == "raw" else to_square(content.tobytes(), self.square)
