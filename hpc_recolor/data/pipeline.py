"""Photographs -> batches on the training device, through DALI. The only door to nvidia.dali."""

from collections.abc import Callable, Iterator, Sequence
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
    count = len(photos)
    if count == 0:
        return torch.empty((0, data.size, data.size, 3), dtype=torch.uint8, device=world.device)

    def draw(iteration: int) -> tuple[Any, Any]:
        return np.arange(count), np.zeros((count, 2), np.bool_)

    return next(_batches(photos, draw, count, data, world, prefetch=1)).rgb_u8_NHWC


def _batches(
    photos: Sequence[Path], draw: Draw, batch_size: int, data: DataConfig, world: World, prefetch: int = 2
) -> Iterator[Batch]:
    try:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy
    except ImportError as error:
        raise UserError(
            f"nvidia-dali cannot be imported ({error}): pip install 'hpc-recolor[cuda13]', or [cuda12] for CUDA 12"
        ) from None
    on_gpu = world.device.type == "cuda"

    def feed(info: Any) -> tuple[Any, ...]:
        numbers, flips = draw(info.iteration)
        encoded = [np.fromfile(photos[number], np.uint8) for number in numbers]
        horizontal, vertical = (np.ascontiguousarray(flips[:, axis], np.int32) for axis in (0, 1))
        return encoded, horizontal, vertical, numbers

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=data.threads,
        device_id=world.local_rank if on_gpu else None,
        prefetch_queue_depth=prefetch,
    )
    def graph() -> tuple[Any, Any]:
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
        [graph()], ["rgb_u8_NHWC", "numbers"], size=-1, last_batch_policy=LastBatchPolicy.PARTIAL
    )
    for (outputs,) in iterator:
        yield Batch(outputs["rgb_u8_NHWC"], outputs["numbers"].flatten())
