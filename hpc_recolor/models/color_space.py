"""Batches to conditions and targets, and generator output back to images."""

import torch
from torch import Tensor

from hpc_recolor.config import ColorName
from recolor_kernels import gather_gray, gather_lab, lab_to_rgb_u8, rgb_float_to_u8, rgb_to_gray, rgb_to_lab


def make_pair(
    rgb_u8_NHWC: Tensor,
    color: ColorName,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    picks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """uint8 images (N,H,W,3) to (condition (N,1,H,W), target (N,C,H,W)) in [-1, 1]: gray and RGB, or L and ab.

    picks: which of more images these are, int64 (N,3), as `recolor_kernels.gather` takes them.
    """
    if picks is None:
        convert = rgb_to_gray if color == "rgb" else rgb_to_lab
        return convert(rgb_u8_NHWC, dtype, memory_format)
    gather = gather_gray if color == "rgb" else gather_lab
    return gather(rgb_u8_NHWC, picks, dtype, memory_format)


def to_images(condition_N1HW: Tensor, output_NCHW: Tensor, color: ColorName) -> Tensor:
    """Condition (N,1,H,W) and generator output (N,C,H,W), both in [-1, 1], to uint8 images (N,H,W,3)."""
    return rgb_float_to_u8(output_NCHW) if color == "rgb" else lab_to_rgb_u8(condition_N1HW, output_NCHW)


def predicted_ab(condition_N1HW: Tensor, output_NCHW: Tensor, color: ColorName) -> Tensor:
    """ab (N,2,H,W), in the range of rgb_to_lab, of condition (N,1,H,W) and generator output (N,C,H,W) in [-1, 1]."""
    return output_NCHW if color == "lab" else rgb_to_lab(to_images(condition_N1HW, output_NCHW, color))[1]


def gray_copy(condition_N1HW: Tensor, color: ColorName) -> Tensor:
    """The gray baseline: the condition (N,1,H,W) in [-1, 1] without color, as uint8 images (N,H,W,3)."""
    without_color = (
        condition_N1HW.expand(-1, 3, -1, -1)
        if color == "rgb"
        else condition_N1HW.new_zeros(condition_N1HW.shape[0], 2, *condition_N1HW.shape[2:])
    )
    return to_images(condition_N1HW, without_color, color)
