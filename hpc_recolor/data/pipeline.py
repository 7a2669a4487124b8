"""Samples -> batches through DALI, one graph for CPU and GPU. The only door to nvidia.dali."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpc_recolor.config import DataConfig, FitName
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.order import DrawBatch
from hpc_recolor.data.samples import SampleReader
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import RankError

# How DALI's resize brings a photograph to the square, which the crop behind it then cuts out or fills up.
_RESIZE_MODE: dict[FitName, str] = {"stretch": "stretch", "crop": "not_smaller", "pad": "not_larger"}

# Batches that are read beside the one that DALI takes, and that DALI decodes ahead of the one that is trained on.
READ_AHEAD = 2
DECODE_AHEAD = 2


def chosen_loader(data: DataConfig) -> Literal["dali", "torch"]:
    """The loader of a config on this machine. Does not import it."""
    if data.loader != "auto":
        return data.loader
    return "dali" if find_spec("nvidia") and find_spec("nvidia.dali") else "torch"


def dali_batches(
    unreadable: SampleReader, draw: DrawBatch, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    """Batches of pictures for ever: batch k has the samples, and the flips, of draw(k).

    A sample that DALI cannot decode ends its pipeline. It is found, the next readable one takes its place, and a new
    pipeline goes on from the batch that failed.
    """
    iteration = 0
    while True:
        try:
            with closing(_run(unreadable, draw, iteration, batch_size, data, world)) as batches:
                for batch in batches:
                    yield batch
                    iteration += 1
        except RuntimeError:
            if not _report_undecodable(unreadable, draw, iteration):
                raise


def undecodable(contents: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Which of these image files DALI cannot decode. One would end a pipeline, so where a batch fails each is tried.

    contents: bytes of a file each, uint8 (n,).
    """
    if not contents or _decodes(contents):
        return []
    return [number for number, content in enumerate(contents) if not _decodes([content])]


def _report_undecodable(unreadable: SampleReader, draw: DrawBatch, iteration: int) -> bool:
    """Look in the batch that failed, and in those that were decoded ahead of it."""
    known = len(unreadable.reasons)
    for ahead in range(DECODE_AHEAD + 1):
        numbers, _ = draw(iteration + ahead)
        read = [unreadable.read(number, unreadable.samples.read) for number in numbers.tolist()]
        for place in undecodable([content for _, content in read]):
            unreadable.report(read[place][0], "DALI cannot decode it")
        if len(unreadable.reasons) > known:
            return True
    return False


def _decodes(contents: Sequence[NDArray[np.uint8]]) -> bool:
    dali = _import_dali()

    @dali.pipeline_def(batch_size=len(contents), num_threads=2, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = dali.fn.external_source(source=lambda: list(contents), dtype=dali.types.UINT8, ndim=1)
        return dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB)

    try:
        graph().run()
    except RuntimeError:
        return False
    return True


def _run(
    unreadable: SampleReader, draw: DrawBatch, iteration: int, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    """The batches from `iteration` on, until DALI raises RuntimeError."""
    dali = _import_dali()
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    on_gpu = world.device.type == "cuda"
    kind = unreadable.samples.kind

    @dali.pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=data.threads,
        device_id=world.local_rank if on_gpu else None,
        prefetch_queue_depth=DECODE_AHEAD,
    )
    def graph() -> tuple[Any, Any]:
        fn, types = dali.fn, dali.types
        content, horizontal, vertical, numbers = fn.external_source(
            source=reader.next_batch,
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT64],
            ndim=[3 if kind == "raw" else 1, 0, 0, 0],
        )
        if kind == "raw":
            pictures = content.gpu() if on_gpu else content
        else:
            pictures = fn.decoders.image(content, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        if kind == "photo":
            pictures = fn.resize(pictures, size=(data.size, data.size), mode=_RESIZE_MODE[data.fit])
            pictures = fn.crop(pictures, crop=(data.size, data.size), out_of_bounds_policy="pad")
        return fn.flip(pictures, horizontal=horizontal, vertical=vertical), numbers

    with closing(_ReadAhead(unreadable, draw, iteration, data.threads)) as reader:
        iterator = DALIGenericIterator(
            [graph()],
            ["rgb_u8_NHWC", "numbers"],
            size=-1,
            last_batch_policy=LastBatchPolicy.PARTIAL,
            prepare_first_batch=False,
        )
        for (outputs,) in iterator:
            yield Batch(outputs["rgb_u8_NHWC"], outputs["numbers"].flatten())


class _ReadAhead:
    """Reads the samples of the next batches while DALI decodes this one: DALI asks for them on the training thread."""

    def __init__(self, unreadable: SampleReader, draw: DrawBatch, iteration: int, threads: int) -> None:
        self.unreadable, self.draw, self.iteration = unreadable, draw, iteration
        self.threads = threads
        self.readers = ThreadPoolExecutor(threads)
        self.batches = ThreadPoolExecutor(1)
        self.waiting: deque[Future[tuple[Any, ...]]] = deque()

    def next_batch(self) -> tuple[Any, ...]:
        """Contents, horizontal and vertical flips, numbers: what the graph is fed."""
        while len(self.waiting) <= READ_AHEAD:
            self.waiting.append(self.batches.submit(self._read_batch, self.iteration))
            self.iteration += 1
        return self.waiting.popleft().result()

    def close(self) -> None:
        """Read no more."""
        for pool in (self.batches, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_batch(self, iteration: int) -> tuple[Any, ...]:
        wanted, flips = self.draw(iteration)
        numbers = wanted.copy()
        raw = self.unreadable.samples.kind == "raw"
        contents: Any = (
            np.empty((len(wanted), *self.unreadable.samples.read(0).shape), np.uint8) if raw else wanted.tolist()
        )

        def read(places: NDArray[np.int64]) -> None:
            # Copied, so that pages of a mapped shard are fetched here and not on the training thread.
            for place in places.tolist():
                numbers[place], content = self.unreadable.read(int(wanted[place]), self.unreadable.samples.read)
                contents[place] = content if raw else content.copy()

        list(self.readers.map(read, np.array_split(np.arange(len(wanted)), self.threads)))
        horizontal, vertical = (np.ascontiguousarray(flips[:, axis], np.int32) for axis in (0, 1))
        return contents, horizontal, vertical, numbers


def _import_dali() -> Any:
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise RankError(
            f"nvidia-dali cannot be imported ({error}): pip install 'hpc-recolor[cuda13]', or [cuda12] for CUDA 12; "
            "or use --data.loader torch"
        ) from None
    return nvidia.dali
