"""A batch from images that lie on the device, mirrored as asked, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, memory, reference
from recolor_kernels.launch import Impl, check_one_device, check_rgb_u8, choose, pixels_per_thread, register

MOST_COLUMNS = 1024  # of a row that are moved together
PICK = 3  # a number and two flips

# ---- kernel ----


@triton.jit
def _gather_kernel(
    images_ptr, picks_ptr, batch_ptr, height, width,
    PICK: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of an image of the batch. Mirrored pixels are read one by one, from lines of cache that neighbors share;
    all are written in groups."""
    program = tl.program_id(0)
    image, row = (program // height).to(tl.int64), (program % height).to(tl.int64)
    number = tl.load(picks_ptr + image * PICK)
    mirrored = tl.load(picks_ptr + image * PICK + 1) != 0
    upside_down = tl.load(picks_ptr + image * PICK + 2) != 0
    source_row = tl.where(upside_down, height - 1 - row, row)
    source = images_ptr + (number * height + source_row) * width * 3
    target = batch_ptr + (image * height + row) * width * 3
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        pixel = source + tl.where(mirrored, width - 1 - column, column) * 3
        red = tl.load(pixel, mask=column < width, other=0).to(tl.int32)
        green = tl.load(pixel + 1, mask=column < width, other=0).to(tl.int32)
        blue = tl.load(pixel + 2, mask=column < width, other=0).to(tl.int32)
        memory.store_rgb(target + first * 3, red, green, blue, width - first, GROUP, BLOCK)


# ---- launcher ----


def _launch_gather(images_u8_NHWC: Tensor, picks: Tensor) -> Tensor:
    images, picks = images_u8_NHWC.contiguous(), picks.contiguous()
    _, height, width, _ = images.shape
    batch = images.new_empty((len(picks), height, width, 3))
    if batch.numel() > 0:
        launch.launch(
            _gather_kernel, len(picks) * height, images_ptr=images, picks_ptr=picks, batch_ptr=batch, height=height,
            width=width, PICK=PICK, GROUP=pixels_per_thread(batch) if width % 4 == 0 else 1,
            BLOCK=min(MOST_COLUMNS, max(16, triton.next_power_of_2(width))),
        )  # fmt: skip
    return batch


# ---- registration ----


_gather = register(
    "gather(Tensor images_u8_NHWC, Tensor picks) -> Tensor",
    cpu=reference.gather,
    cuda=_launch_gather,
    fake=lambda images, picks: images.new_empty((len(picks), *images.shape[1:])),
)

# ---- public function ----


def gather(images_u8_NHWC: Tensor, picks: Tensor, impl: Impl = "auto") -> Tensor:
    """Images of a batch, uint8 (N,H,W,3), out of all images, uint8 (M,H,W,3), any strides.

    picks: int64 (N,3), on the same device: the number of the image [0 to M-1, not checked on a GPU], whether it is
    mirrored left to right, and whether top to bottom [0 or 1]. Raises ValueError for other shapes, types or impl.
    """
    check_rgb_u8(images_u8_NHWC)
    if picks.dtype != torch.int64 or picks.ndim != 2 or picks.shape[1] != PICK:
        raise ValueError(f"expected picks as int64 (N,{PICK}), got {picks.dtype} {tuple(picks.shape)}")
    check_one_device(images_u8_NHWC, picks)
    function = choose(impl, images_u8_NHWC, op=_gather, triton=_launch_gather, reference=reference.gather)
    batch: Tensor = function(images_u8_NHWC, picks)
    return batch
