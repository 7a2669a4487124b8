"""Photographs -> batches on the training device, through DALI. The only door to nvidia.dali."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpc_recolor.config import DataConfig, FitName
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.distributed import World
from hpc_recolor.errors import UserError

# How DALI's resize brings a photograph to the square, which the crop behind it then cuts out or fills up.
_RESIZE_MODE: dict[FitName, str] = {"stretch": "stretch", "crop": "not_smaller", "pad": "not_larger"}

LOADED_TOGETHER = 32

Draw = Callable[[int], tuple["np.typing.NDArray[np.int64]", "np.typing.NDArray[np.bool_]"]]


class Batch(NamedTuple):
    """rgb_u8_NHWC: uint8 pictures (N, size, size, 3) on the training device. numbers: int64 (N,), which photographs."""

    rgb_u8_NHWC: Tensor  # noqa: N815, the layout
    numbers: Tensor


def training_batches(
    photos: Sequence[Path], order: SampleOrder, images_seen: int, batch_size: int, data: DataConfig, world: World
) -> Iterator[Batch]:
    """This rank's slices of the global batches that follow `images_seen`, for ever.

    batch_size: of the global batch, divisible by the number of ranks, each of which takes the slice at its place.
    """
    local_size = batch_size // world.size
    flips_allowed = np.array([data.flip_horizontal, data.flip_vertical])

    def draw(iteration: int) -> tuple[Any, Any]:
        start = images_seen + iteration * batch_size + world.rank * local_size
        numbers, flips = order.draw(start, local_size)
        return numbers, flips & flips_allowed

    return _batches(photos, draw, local_size, data, world)


def load_photos(photos: Sequence[Path], data: DataConfig, world: World) -> Tensor:
    """All these photographs as one batch of pictures, unflipped: uint8 (len(photos), size, size, 3)."""
    if not photos:
        return torch.empty((0, data.size, data.size, 3), dtype=torch.uint8, device=world.device)
    together = min(LOADED_TOGETHER, len(photos))

    def draw(iteration: int) -> tuple[Any, Any]:
        numbers = np.arange(iteration * together, (iteration + 1) * together) % len(photos)
        return numbers, np.zeros((together, 2), np.bool_)

    batches = islice(_batches(photos, draw, together, data, world), -(-len(photos) // together))
    return torch.cat([batch.rgb_u8_NHWC for batch in batches])[: len(photos)]


def undecodable(photos: Sequence[Path]) -> list[Path]:
    """Those that DALI cannot decode. One of them would end a pipeline, so where a batch fails each is tried alone."""
    if not photos or _decodes(photos):
        return []
    return [photo for photo in photos if not _decodes([photo])]


def _decodes(photos: Sequence[Path]) -> bool:
    dali = _import_dali()

    @dali.pipeline_def(batch_size=len(photos), num_threads=2, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = dali.fn.external_source(
            source=lambda: [_read(photo) for photo in photos], dtype=dali.types.UINT8, ndim=1
        )
        return dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB)

    try:
        graph().run()
    except RuntimeError:
        return False
    return True


def _batches(photos: Sequence[Path], draw: Draw, batch_size: int, data: DataConfig, world: World) -> Iterator[Batch]:
    dali = _import_dali()
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    on_gpu = world.device.type == "cuda"
    readers = ThreadPoolExecutor(data.threads)

    def feed(info: Any) -> tuple[Any, ...]:
        numbers, flips = draw(info.iteration)
        encoded = list(readers.map(_read, (photos[number] for number in numbers)))
        horizontal, vertical = (np.ascontiguousarray(flips[:, axis], np.int32) for axis in (0, 1))
        return encoded, horizontal, vertical, numbers

    @dali.pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=data.threads,
        device_id=world.local_rank if on_gpu else None,
    )
    def graph() -> tuple[Any, Any]:
        fn, types = dali.fn, dali.types
        encoded, horizontal, vertical, numbers = fn.external_source(
            source=feed,
            num_outputs=4,
            batch=True,
            batch_info=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT64],
            ndim=[1, 0, 0, 0],
        )
        pictures = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        pictures = fn.resize(pictures, size=(data.size, data.size), mode=_RESIZE_MODE[data.fit])
        pictures = fn.crop(pictures, crop=(data.size, data.size), out_of_bounds_policy="pad")
        return fn.flip(pictures, horizontal=horizontal, vertical=vertical), numbers

    iterator = DALIGenericIterator(
        [graph()],
        ["rgb_u8_NHWC", "numbers"],
        size=-1,
        last_batch_policy=LastBatchPolicy.PARTIAL,
        prepare_first_batch=False,
    )
    for (outputs,) in iterator:
        yield Batch(outputs["rgb_u8_NHWC"], outputs["numbers"].flatten())


def _read(photo: Path) -> "np.typing.NDArray[np.uint8]":
    return np.fromfile(photo, np.uint8)


def _import_dali() -> Any:
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise UserError(
            f"nvidia-dali cannot be imported ({error}): pip install 'hpc-recolor[cuda13]', or [cuda12] for CUDA 12"
        ) from None
    return nvidia.dali
