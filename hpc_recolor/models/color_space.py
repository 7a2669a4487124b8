"""Batches to what the networks see, and the generator's output back to pictures."""

import torch
from torch import Tensor

from hpc_recolor.config import ColorName
from recolor_kernels import lab_to_rgb_u8, rgb_float_to_u8, rgb_to_gray, rgb_to_lab

CONDITION_CHANNELS = 1


def target_channels(color: ColorName) -> int:
    """Channels that the generator makes: RGB, or ab."""
    return 3 if color == "rgb" else 2


def make_pair(rgb_u8_NHWC: Tensor, color: ColorName, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pictures to (condition (N,1,H,W), target (N,C,H,W)), both in [-1, 1]: gray and RGB, or L and ab."""
    return rgb_to_gray(rgb_u8_NHWC, dtype) if color == "rgb" else rgb_to_lab(rgb_u8_NHWC, dtype)


def to_pictures(condition_N1HW: Tensor, output_NCHW: Tensor, color: ColorName) -> Tensor:
    """What the generator was given and what it made of it, as pictures: uint8 (N,H,W,3)."""
    return rgb_float_to_u8(output_NCHW) if color == "rgb" else lab_to_rgb_u8(condition_N1HW, output_NCHW)


def gray_copy(condition_N1HW: Tensor, color: ColorName) -> Tensor:
    """The pictures that a colorizer without color makes: the condition alone, as uint8 (N,H,W,3)."""
    without_color = (
        condition_N1HW.expand(-1, 3, -1, -1)
        if color == "rgb"
        else condition_N1HW.new_zeros(condition_N1HW.shape[0], 2, *condition_N1HW.shape[2:])
    )
    return to_pictures(condition_N1HW, without_color, color)
