"""Batches of images that lie on the device, mirrored as asked: as images or as tensors of networks, in one launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color, color_math, launch, memory, reference
from recolor_kernels.launch import (
    Impl,
    check_one_device,
    check_rgb_u8,
    check_triton_dtype,
    choose,
    pixels_per_thread,
    register,
)

PIXELS_PER_PROGRAM = 1024  # in whole rows; of longer rows, so many at once
PICK = 3  # a number and two flips

# ---- kernels ----


@triton.jit
def _gather_kernel(
    images_ptr, picks_ptr, batch_ptr, height, width, rows, blocks,
    PICK: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, before, pixels = _locate(tl.program_id(0), height, width, rows, blocks)
    source, mirrored, upside_down = _picked(picks_ptr, image, before, height, width, PICK)
    batch = batch_ptr + (image * height * width + before) * 3
    for first in range(0, pixels, BLOCK):
        red, green, blue = memory.load_rgb_flipped(
            images_ptr + source, first, pixels, width, mirrored, upside_down, GROUP, BLOCK
        )
        memory.store_rgb(batch + first * 3, red, green, blue, pixels - first, GROUP, BLOCK)


@triton.jit
def _gather_lab_kernel(
    images_ptr, picks_ptr, l_ptr, ab_ptr, height, width, rows, blocks,
    PICK: tl.constexpr, EXACT: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, before, pixels = _locate(tl.program_id(0), height, width, rows, blocks)
    source, mirrored, upside_down = _picked(picks_ptr, image, before, height, width, PICK)
    of_image = tl.cast(height, tl.int64) * width
    for first in range(0, pixels, BLOCK):
        red, green, blue = memory.load_rgb_flipped(
            images_ptr + source, first, pixels, width, mirrored, upside_down, GROUP, BLOCK
        )
        lightness, a, b = color_math.rgb_to_lab(red, green, blue, EXACT)
        left = pixels - first
        memory.store(l_ptr + image * of_image + before + first, lightness, left, BLOCK)
        memory.store_two(ab_ptr, a, b, image, before + first, of_image, left, LAST, BLOCK)


@triton.jit
def _gather_gray_kernel(
    images_ptr, picks_ptr, gray_ptr, target_ptr, height, width, rows, blocks,
    PICK: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, before, pixels = _locate(tl.program_id(0), height, width, rows, blocks)
    source, mirrored, upside_down = _picked(picks_ptr, image, before, height, width, PICK)
    of_image = tl.cast(height, tl.int64) * width
    for first in range(0, pixels, BLOCK):
        red, green, blue = memory.load_rgb_flipped(
            images_ptr + source, first, pixels, width, mirrored, upside_down, GROUP, BLOCK
        )
        r, g, b = color_math.level_to_value(red), color_math.level_to_value(green), color_math.level_to_value(blue)
        left = pixels - first
        memory.store(gray_ptr + image * of_image + before + first, color_math.luma(r, g, b), left, BLOCK)
        memory.store_three(target_ptr, r, g, b, image, before + first, of_image, left, LAST, GROUP, BLOCK)


@triton.jit
def _locate(block, height, width, rows, blocks):
    """Of a block of rows of the batch: its image, the pixels of that image before it, and its pixels.

    rows: of a block. blocks: of an image.
    """
    image, row = (block // blocks).to(tl.int64), (block % blocks).to(tl.int64) * rows
    return image, row * width, tl.minimum(height - row, rows).to(tl.int32) * width


@triton.jit
def _picked(picks_ptr, image, before, height, width, PICK: tl.constexpr):
    """Where the row that comes first after `before` pixels of an image of the batch lies among all images, and whether
    rows are mirrored, and come from the bottom up."""
    pick = picks_ptr + image * PICK
    mirrored, upside_down = tl.load(pick + 1) != 0, tl.load(pick + 2) != 0
    of_image = tl.cast(height, tl.int64) * width
    before = tl.where(upside_down, of_image - width - before, before)
    return (tl.load(pick) * of_image + before) * 3, mirrored, upside_down


# ---- launchers ----


def _launch(kernel: Any, images_u8_NHWC: Tensor, picks: Tensor, **arguments: Any) -> None:
    """Launch over all rows of the batch; without pixels launch nothing."""
    images, picks = images_u8_NHWC.contiguous(), picks.contiguous()
    _, height, width, _ = images.shape
    if len(picks) * height * width == 0:
        return
    rows = max(1, PIXELS_PER_PROGRAM // width)
    blocks = triton.cdiv(height, rows)
    launch.launch(
        kernel, len(picks) * blocks, images_ptr=images, picks_ptr=picks, **arguments, height=height, width=width,
        rows=rows, blocks=blocks, PICK=PICK, GROUP=pixels_per_thread(images) if width % 4 == 0 else 1,
        BLOCK=PIXELS_PER_PROGRAM,
    )  # fmt: skip


def _empty_batch(images_u8_NHWC: Tensor, picks: Tensor) -> Tensor:
    return images_u8_NHWC.new_empty((len(picks), *images_u8_NHWC.shape[1:]))


def _launch_gather(images_u8_NHWC: Tensor, picks: Tensor) -> Tensor:
    batch = _empty_batch(images_u8_NHWC, picks)
    _launch(_gather_kernel, images_u8_NHWC, picks, batch_ptr=batch)
    return batch


def _launch_gather_lab(
    images_u8_NHWC: Tensor, picks: Tensor, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    check_triton_dtype(dtype)
    lightness, ab = _empty_pair(images_u8_NHWC, picks, 2, dtype, channels_last)
    _launch(
        _gather_lab_kernel, images_u8_NHWC, picks, l_ptr=lightness, ab_ptr=ab, EXACT=color.is_exact(dtype),
        LAST=channels_last,
    )  # fmt: skip
    return lightness, ab


def _launch_gather_gray(
    images_u8_NHWC: Tensor, picks: Tensor, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    check_triton_dtype(dtype)
    gray, target = _empty_pair(images_u8_NHWC, picks, 3, dtype, channels_last)
    _launch(_gather_gray_kernel, images_u8_NHWC, picks, gray_ptr=gray, target_ptr=target, LAST=channels_last)
    return gray, target


def _empty_pair(
    images_u8_NHWC: Tensor, picks: Tensor, channels: int, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    return color.empty_pair(len(picks), images_u8_NHWC, channels, dtype, channels_last)


# ---- registration ----


def _reference_gather_lab(
    images_u8_NHWC: Tensor, picks: Tensor, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    return color.reference_rgb_to_lab(reference.gather(images_u8_NHWC, picks), dtype, channels_last)


def _reference_gather_gray(
    images_u8_NHWC: Tensor, picks: Tensor, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    return color.reference_rgb_to_gray(reference.gather(images_u8_NHWC, picks), dtype, channels_last)


_gather = register(
    "gather(Tensor images_u8_NHWC, Tensor picks) -> Tensor",
    cpu=reference.gather,
    cuda=_launch_gather,
    fake=_empty_batch,
)
_gather_lab = register(
    "gather_lab(Tensor images_u8_NHWC, Tensor picks, ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    cpu=_reference_gather_lab,
    cuda=_launch_gather_lab,
    fake=lambda images, picks, dtype, channels_last: _empty_pair(images, picks, 2, dtype, channels_last),
)
_gather_gray = register(
    "gather_gray(Tensor images_u8_NHWC, Tensor picks, ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    cpu=_reference_gather_gray,
    cuda=_launch_gather_gray,
    fake=lambda images, picks, dtype, channels_last: _empty_pair(images, picks, 3, dtype, channels_last),
)

# ---- public functions ----


def gather(images_u8_NHWC: Tensor, picks: Tensor, impl: Impl = "auto") -> Tensor:
    """Images of a batch, uint8 (N,H,W,3), out of all images, uint8 (M,H,W,3), any strides.

    picks: int64 (N,3), on the same device: the number of the image [0 to M-1, not checked on a GPU], whether it is
    mirrored left to right, and whether top to bottom [0 or 1]. Raises ValueError for other shapes, types or impl.
    """
    _check(images_u8_NHWC, picks)
    function = choose(impl, images_u8_NHWC, op=_gather, triton=_launch_gather, reference=reference.gather)
    batch: Tensor = function(images_u8_NHWC, picks)
    return batch


def gather_lab(
    images_u8_NHWC: Tensor,
    picks: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """`rgb_to_lab` of `gather`, to the bit: L (N,1,H,W) and ab (N,2,H,W) of a batch out of images, uint8 (M,H,W,3).

    picks: as for gather. dtype, memory_format, and all else: as for rgb_to_lab.
    """
    _check(images_u8_NHWC, picks)
    last = color.is_channels_last(memory_format)
    function = choose(impl, images_u8_NHWC, op=_gather_lab, triton=_launch_gather_lab, reference=_reference_gather_lab)
    lightness, ab = function(images_u8_NHWC, picks, dtype, last)
    return lightness, ab


def gather_gray(
    images_u8_NHWC: Tensor,
    picks: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """`rgb_to_gray` of `gather`, to the bit: gray (N,1,H,W) and RGB (N,3,H,W) of a batch out of images, uint8
    (M,H,W,3).

    picks: as for gather. dtype, memory_format, and all else: as for rgb_to_gray.
    """
    _check(images_u8_NHWC, picks)
    last = color.is_channels_last(memory_format)
    function = choose(
        impl, images_u8_NHWC, op=_gather_gray, triton=_launch_gather_gray, reference=_reference_gather_gray
    )
    gray, target = function(images_u8_NHWC, picks, dtype, last)
    return gray, target


def _check(images_u8_NHWC: Tensor, picks: Tensor) -> None:
    check_rgb_u8(images_u8_NHWC)
    if picks.dtype != torch.int64 or picks.ndim != 2 or picks.shape[1] != PICK:
        raise ValueError(f"expected picks as int64 (N,{PICK}), got {picks.dtype} {tuple(picks.shape)}")
    check_one_device(images_u8_NHWC, picks)
