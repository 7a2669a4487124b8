"""A batch from images that lie on the device, mirrored as asked, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, memory, reference
from recolor_kernels.launch import Impl, check_one_device, check_rgb_u8, choose, pixels_per_thread, register

PIXELS_PER_PROGRAM = 1024
PICK = 3  # a number and two flips

# ---- kernel ----


@triton.jit
def _gather_kernel(
    images_ptr, picks_ptr, batch_ptr, width, pixels, blocks,
    PICK: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of an image of the batch. Mirrored pixels are read one by one, from lines of cache that neighbors
    share; all are written in groups."""
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    number = tl.load(picks_ptr + image * PICK)
    mirrored = tl.load(picks_ptr + image * PICK + 1) != 0
    upside_down = tl.load(picks_ptr + image * PICK + 2) != 0
    pixel = first.to(tl.int32) + tl.arange(0, BLOCK)
    row, column = pixel // width, pixel % width
    row = tl.where(upside_down, pixels // width - 1 - row, row)
    column = tl.where(mirrored, width - 1 - column, column)
    source = images_ptr + number * pixels * 3 + (row * width + column) * 3
    inside = tl.arange(0, BLOCK) < left
    red = tl.load(source, mask=inside, other=0).to(tl.int32)
    green = tl.load(source + 1, mask=inside, other=0).to(tl.int32)
    blue = tl.load(source + 2, mask=inside, other=0).to(tl.int32)
    memory.store_rgb(batch_ptr + (image * pixels + first) * 3, red, green, blue, left, GROUP, BLOCK)


# ---- launcher ----


def _launch_gather(images_u8_NHWC: Tensor, picks: Tensor) -> Tensor:
    images, picks = images_u8_NHWC.contiguous(), picks.contiguous()
    _, height, width, _ = images.shape
    batch = images.new_empty((len(picks), height, width, 3))
    blocks = triton.cdiv(height * width, PIXELS_PER_PROGRAM)
    if len(picks) * blocks > 0:
        launch.launch(
            _gather_kernel, len(picks) * blocks, images_ptr=images, picks_ptr=picks, batch_ptr=batch, width=width,
            pixels=height * width, blocks=blocks, PICK=PICK, GROUP=pixels_per_thread(batch), BLOCK=PIXELS_PER_PROGRAM,
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
