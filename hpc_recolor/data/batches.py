"""Samples -> batches on the training device: in the run's order, through DALI, torch's loader, or from memory."""

from collections.abc import Callable, Generator
from contextlib import closing
from itertools import count, islice
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_recolor.config import DataConfig
from hpc_recolor.data.batch import Batch, flipped
from hpc_recolor.data.crops import crop
from hpc_recolor.data.host_cache import shared_images
from hpc_recolor.data.order import DrawBatch, SampleOrder, rank_slices
from hpc_recolor.data.pipeline import chosen_loader, dali_batches
from hpc_recolor.data.samples import SampleReader, Samples
from hpc_recolor.data.torch_loader import torch_batches
from hpc_recolor.runtime.distributed import World, ranks_here
from hpc_recolor.runtime.errors import RankError
from hpc_recolor.runtime.process import memory_bytes
from recolor_kernels import gather

LOADED_TOGETHER = 32


def training_batches(
    samples: Samples,
    order: SampleOrder,
    images_seen: int,
    batch_size: int,
    data: DataConfig,
    world: World,
    report: Callable[[], None] = lambda: None,
) -> Generator[Batch]:
    """This rank's slices of the global batches that follow `images_seen`, without end.

    batch_size: of the global batch, divisible by the number of ranks; each rank takes the slice at its position.
    All ranks call it together. report: called while data.cache is filled, after every few images. Raises RankError
    if data.cache needs more memory than is free, or more than data.max_unreadable of the samples cannot be read.
    """
    slices = rank_slices(order, images_seen, batch_size, world.rank, world.size)
    flips_allowed = np.array([data.flip_horizontal, data.flip_vertical])

    def draw_batch(iteration: int) -> tuple[Any, Any]:
        numbers, flips = slices(iteration)
        return numbers, flips & flips_allowed

    if data.cache == "none":
        batches = _batches(samples, draw_batch, batch_size // world.size, data, world)
    else:
        batches = _from_memory(_load_all(samples, data, world, report), draw_batch, data, world)
    if data.smallest_crop == 1:
        return batches
    return _cropped(batches, order, images_seen, batch_size, data, world)


def load_images(
    samples: Samples,
    data: DataConfig,
    world: World,
    device: torch.device | None = None,
    report: Callable[[], None] = lambda: None,
) -> Tensor:
    """All samples as one batch of images, unflipped: uint8 (len(samples), size, size, 3).

    device: where to; by default the training device. report: called after every few images.
    """
    images = torch.empty(_shape(samples, data), dtype=torch.uint8, device=world.device if device is None else device)
    if len(samples):
        _fill(images, 0, samples, data, world, report)
    return images


def _shape(samples: Samples, data: DataConfig) -> tuple[int, int, int, int]:
    return len(samples), data.size, data.size, 3


def _fill(
    images: Tensor, first: int, samples: Samples, data: DataConfig, world: World, report: Callable[[], None]
) -> None:
    """Write the samples from number `first` on into images, one or more."""
    together = min(LOADED_TOGETHER, len(images))

    def draw_batch(iteration: int) -> tuple[Any, Any]:
        numbers = np.arange(iteration * together, (iteration + 1) * together) % len(images)
        return first + numbers, np.zeros((together, 2), np.bool_)

    starts = range(0, len(images), together)
    batches = islice(_batches(samples, draw_batch, together, data, world), len(starts))
    for start, batch in zip(starts, batches, strict=True):
        left = len(images) - start
        images[start : start + together] = batch.rgb_u8_NHWC[:left]
        report()


def _batches(
    samples: Samples, draw_batch: DrawBatch, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    reader = SampleReader(samples, data.max_unreadable)
    if chosen_loader(data) == "dali":
        return dali_batches(reader, draw_batch, batch_size, data, world)
    return torch_batches(reader, draw_batch, data, world)


def _cropped(
    batches: Generator[Batch], order: SampleOrder, images_seen: int, batch_size: int, data: DataConfig, world: World
) -> Generator[Batch]:
    """The batches that follow `images_seen`, each image cut as its position in the stream of samples says."""
    with closing(batches):
        for start, batch in zip(count(images_seen, batch_size), batches, strict=False):
            n = len(batch.rgb_u8_NHWC)
            crops = order.draw_crops(start + world.rank * n, n)
            yield batch._replace(rgb_u8_NHWC=crop(batch.rgb_u8_NHWC, crops, data.smallest_crop))


def _load_all(samples: Samples, data: DataConfig, world: World, report: Callable[[], None]) -> Tensor:
    """The images of all samples on the GPU, or in the host's memory, there once for all ranks of a machine."""
    if data.cache == "device" and world.device.type == "cuda":
        _check_memory(samples, data, 1, torch.cuda.mem_get_info(world.device)[0])
        return load_images(samples, data, world, report=report)
    _check_memory(samples, data, 1, memory_bytes()[0])
    images = None
    if world.size > 1:

        def fill(part: Tensor, first: int) -> None:
            _fill(part, first, samples, data, world, report)

        images = shared_images(_shape(samples, data), fill, world)
    if images is None:
        _check_memory(samples, data, ranks_here(), memory_bytes()[0])
        images = load_images(samples, data, world, torch.device("cpu"), report)
    return images


def _check_memory(samples: Samples, data: DataConfig, copies: int, free_bytes: int) -> None:
    needed = copies * prod(_shape(samples, data))
    if needed > free_bytes:
        held = f" in each of {copies} ranks" if copies > 1 else ""
        raise RankError(
            f"data.cache={data.cache}",
            f"{len(samples)} images of {data.size} px{held} take {needed / 2**30:.1f} GiB, "
            f"{free_bytes / 2**30:.1f} GiB are free",
            "use data.cache=none",
        )


def _from_memory(images: Tensor, draw_batch: DrawBatch, data: DataConfig, world: World) -> Generator[Batch]:
    def to_gpu(host: Tensor) -> Tensor:
        return host.pin_memory().to(world.device, non_blocking=True)

    for iteration in count():
        drawn, flips = draw_batch(iteration)
        numbers = torch.from_numpy(drawn)
        if world.device.type == "cpu":
            yield Batch(stacked(images, drawn, flips), numbers)
            continue
        rgb_u8_NHWC, picks = picked(images, images.is_cuda, drawn, flips, to_gpu)
        if images.is_cuda and data.smallest_crop == 1:
            yield Batch(rgb_u8_NHWC, numbers, picks)  # gathered in the step, with its colors in one launch
        else:
            yield Batch(gather(rgb_u8_NHWC, picks), numbers)


def picked(
    images: Tensor, is_resident: bool, drawn: Any, flips: Any, to_gpu: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Images on the GPU, and the picks by which `recolor_kernels.gather` makes of them what `stacked` does; not waited
    for. is_resident: whether `images` are there already."""
    numbers = drawn if is_resident else np.arange(len(drawn))
    picks = to_gpu(torch.from_numpy(np.column_stack((numbers, flips)).astype(np.int64)))
    return images if is_resident else to_gpu(images[torch.from_numpy(drawn)]), picks


def stacked(images: Tensor, drawn: Any, flips: Any) -> Tensor:
    """A batch, uint8 (N,H,W,3), of the images uint8 (M,H,W,3) on the host that are drawn, and flipped, for it.

    drawn: int64 (N,), numbers of images; flips: bool (N,2), left to right and top to bottom.
    """
    rows = images.numpy()
    return torch.from_numpy(np.stack([flipped(rows[number], *flip) for number, flip in zip(drawn, flips, strict=True)]))
