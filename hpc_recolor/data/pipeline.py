"""Samples -> batches through DALI, one graph for CPU and GPU. The only door to nvidia.dali."""

import re
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from hpc_recolor.config import DataConfig, FitName
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.order import DrawBatch
from hpc_recolor.data.photo import for_dali
from hpc_recolor.data.samples import SampleReader
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import RankError

# Mode of DALI's resize for each fit; the crop after it then cuts or pads to the square.
_RESIZE_MODE: dict[FitName, str] = {"stretch": "stretch", "crop": "not_smaller", "pad": "not_larger"}

# Batches read ahead of the one that DALI takes, and batches that DALI decodes ahead of the one being trained on.
READ_AHEAD = 2
DECODE_AHEAD = 2

# In DALI's errors, which are RuntimeErrors all, where it found no memory.
_NO_MEMORY = re.compile(
    r"Can't allocate|CUDA allocation failed|Could not allocate|cudaErrorMemoryAllocation|out of memory|OUT_OF_MEMORY"
    r"|ALLOCATOR_FAILURE|bad_alloc"
)


def chosen_loader(data: DataConfig) -> Literal["dali", "torch"]:
    """The loader that a config selects on this machine. Does not import it."""
    if data.loader != "auto":
        return data.loader
    return "dali" if find_spec("nvidia") and find_spec("nvidia.dali") else "torch"


def describe_loader(data: DataConfig) -> str:
    """The loader that runs, and where it was not chosen by the config, why."""
    loader = {"dali": "DALI", "torch": "torch's DataLoader"}[chosen_loader(data)]
    if data.loader != "auto":
        return loader
    found = "which is installed" if loader == "DALI" else "as DALI is not installed: pip install 'hpc-recolor[cuda13]'"
    return f"{loader}, {found}"


def dali_batches(
    reader: SampleReader, draw_batch: DrawBatch, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    """Batches without end: batch k has the samples, and the flips, of draw_batch(k).

    batch_size: of this rank. A sample that DALI cannot decode ends its pipeline. It is found, replaced by the next
    readable one, and a new pipeline continues from the batch that failed.
    Raises RankError if DALI cannot be imported or finds no memory, or too many samples cannot be read.
    """
    iteration = 0
    while True:
        try:
            with closing(_run(reader, draw_batch, iteration, batch_size, data, world)) as batches:
                for batch in batches:
                    yield batch
                    iteration += 1
        except RuntimeError as error:
            _check_no_memory_failed(error, batch_size, data)
            if not _report_undecodable(reader, draw_batch, iteration):
                raise


def undecodable(contents: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Indexes of the image files that DALI cannot decode. One ends a pipeline, so if the batch fails each is tried.

    contents: the bytes of each file, uint8 (n,). Raises RankError if DALI cannot be imported.
    """
    contents = [_prepared(content) for content in contents]
    if not contents or _decodes(contents):
        return []
    return [number for number, content in enumerate(contents) if not _decodes([content])]


def _prepared(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A photograph's file as DALI gets it, uint8 (n,)."""
    return np.frombuffer(for_dali(content.tobytes()), np.uint8)


def _check_no_memory_failed(error: RuntimeError, batch_size: int, data: DataConfig) -> None:
    """Raises RankError if DALI failed for want of memory, which is no photograph's fault."""
    reasons = [line.strip() for line in str(error).splitlines() if _NO_MEMORY.search(line)]
    if reasons:
        raise RankError(
            f"data.loader={data.loader}",
            f"DALI found no memory for batches of {batch_size} images in each rank ({reasons[0]})",
            "use a smaller train.batch_size, another data.cache, or raw shards (prepare --format raw)",
        ) from error


def _report_undecodable(reader: SampleReader, draw_batch: DrawBatch, iteration: int) -> bool:
    """Search the batch that failed and those decoded ahead of it. Returns whether any sample is to blame."""
    known = len(reader.reasons)
    for ahead in range(DECODE_AHEAD + 1):
        numbers, _ = draw_batch(iteration + ahead)
        read = [reader.read(number, reader.samples.read) for number in numbers.tolist()]
        for index in undecodable([content for _, content in read]):
            reader.report(read[index][0], "DALI cannot decode it")
        if len(reader.reasons) > known:
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
    reader: SampleReader, draw_batch: DrawBatch, iteration: int, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    """The batches from `iteration` on, until DALI raises RuntimeError."""
    dali = _import_dali()
    on_gpu = world.device.type == "cuda"
    kind = reader.samples.kind

    @dali.pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=data.threads,
        device_id=world.local_rank if on_gpu else None,
        prefetch_queue_depth=DECODE_AHEAD,
    )
    def graph() -> tuple[Any, Any]:
        fn, types = dali.fn, dali.types
        content, horizontal, vertical, numbers = fn.external_source(
            source=read_ahead.next_batch,
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT64],
            ndim=[3 if kind == "raw" else 1, 0, 0, 0],
        )
        if kind == "raw":
            images = content.gpu() if on_gpu else content
        else:
            images = fn.decoders.image(content, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        if kind == "photo":
            images = fn.resize(images, size=(data.size, data.size), mode=_RESIZE_MODE[data.fit])
            images = fn.crop(images, crop=(data.size, data.size), out_of_bounds_policy="pad")
        return fn.flip(images, horizontal=horizontal, vertical=vertical), numbers

    with closing(_ReadAhead(reader, draw_batch, iteration, data.threads)) as read_ahead:
        pipeline = graph()
        pipeline.schedule_run()  # the first DECODE_AHEAD batches
        while True:
            # Not through DALI's iterator for PyTorch, which waits on the host until the GPU has decoded the batch.
            outputs = pipeline.outputs(torch.cuda.current_stream(world.device) if on_gpu else None)
            pipeline.schedule_run()  # one more; pipeline.run() would do so only when the next batch is asked for
            yield handed_over(*outputs)


def handed_over(images: Any, numbers: Any) -> Batch:
    """DALI's outputs as a batch, in the same memory.

    On a GPU they are bound to a stream: it waits for them, the host does not, and DALI takes their memory again once
    torch's tensors are gone and the stream has come so far.
    """
    rgb_u8_NHWC, flat = (from_dlpack(output.as_tensor()) for output in (images, numbers))
    return Batch(rgb_u8_NHWC, flat.flatten())


class _ReadAhead:
    """Reads the samples of the next batches while DALI decodes this one: DALI requests them on the training thread."""

    def __init__(self, reader: SampleReader, draw_batch: DrawBatch, iteration: int, threads: int) -> None:
        self.reader, self.draw_batch, self.iteration = reader, draw_batch, iteration
        self.threads = threads
        self.sample_threads = ThreadPoolExecutor(threads)
        self.batch_thread = ThreadPoolExecutor(1)
        self.waiting: deque[Future[tuple[Any, ...]]] = deque()

    def next_batch(self) -> tuple[Any, ...]:
        """Contents, horizontal and vertical flips, numbers: the inputs of the graph."""
        while len(self.waiting) <= READ_AHEAD:
            self.waiting.append(self.batch_thread.submit(self._read_batch, self.iteration))
            self.iteration += 1
        return self.waiting.popleft().result()

    def close(self) -> None:
        """Stop reading; pending batches are dropped."""
        for pool in (self.batch_thread, self.sample_threads):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_batch(self, iteration: int) -> tuple[Any, ...]:
        wanted, flips = self.draw_batch(iteration)
        numbers, samples = wanted.copy(), self.reader.samples
        raw = samples.kind == "raw"
        contents: Any = np.empty((len(wanted), *samples.read(0).shape), np.uint8) if raw else wanted.tolist()

        def read(indexes: NDArray[np.int64]) -> None:
            # Copied, so that pages of a mapped shard are fetched here and not on the training thread.
            for index in indexes.tolist():
                numbers[index], content = self.reader.read(int(wanted[index]), self._read)
                contents[index] = content if raw else content.copy()

        list(self.sample_threads.map(read, np.array_split(np.arange(len(wanted)), self.threads)))
        horizontal, vertical = (np.ascontiguousarray(flips[:, axis], np.int32) for axis in (0, 1))
        return contents, horizontal, vertical, numbers

    def _read(self, number: int) -> NDArray[np.uint8]:
        content = self.reader.samples.read(number)
        return _prepared(content) if self.reader.samples.kind == "photo" else content


def _import_dali() -> Any:
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise RankError(
            "nvidia-dali",
            f"cannot be imported ({error})",
            "pip install 'hpc-recolor[cuda13]', or [cuda12] for CUDA 12, or use --data.loader torch",
        ) from None
    return nvidia.dali
