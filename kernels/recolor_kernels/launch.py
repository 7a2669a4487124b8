"""Checks of what comes in, the choice of implementation, and the size of launches."""

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "reference"]
Function = TypeVar("Function", bound=Callable[..., Any])

# Pixels that a program converts: a multiple of 4, so that each thread can move whole words.
PIXELS_PER_PROGRAM = 1024

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(impl: Impl, tensor: Tensor, *, op: Function, triton: Function, reference: Function) -> Function:
    """What runs: for auto the registered op, which is Triton on CUDA tensors and the reference elsewhere.

    Raises ValueError for another impl, or for Triton on CPU tensors, which only its interpreter takes (for tests).
    """
    if impl == "auto":
        return op
    if impl == "reference":
        return reference
    if impl != "triton":
        raise ValueError(f"impl={impl!r}: expected 'auto', 'triton' or 'reference'")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton': expected a CUDA tensor, got one on {tensor.device}")
    return triton


def check_rgb_u8(rgb: Tensor) -> None:
    """Raise ValueError unless this is a batch of pictures, uint8 (N,H,W,3)."""
    if rgb.dtype != torch.uint8 or rgb.ndim != 4 or rgb.shape[-1] != 3:
        raise ValueError(f"expected RGB as uint8 (N,H,W,3), got {rgb.dtype} {tuple(rgb.shape)}")


def check_lab(lightness: Tensor, ab: Tensor) -> None:
    """Raise ValueError unless these are L (N,1,H,W) and ab (N,2,H,W), floating, of one type, on one device."""
    n, _, h, w = lightness.shape if lightness.ndim == 4 else (0, 0, 0, 0)
    if lightness.shape != (n, 1, h, w) or ab.shape != (n, 2, h, w):
        raise ValueError(f"expected L (N,1,H,W) and ab (N,2,H,W), got {tuple(lightness.shape)} and {tuple(ab.shape)}")
    if not lightness.is_floating_point() or lightness.dtype != ab.dtype or lightness.device != ab.device:
        raise ValueError(
            "expected L and ab of one floating type on one device, "
            f"got {lightness.dtype} on {lightness.device} and {ab.dtype} on {ab.device}"
        )


def check_triton_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError unless kernels read and write this type; they compute in float32."""
    if dtype not in TRITON_DTYPES:
        raise ValueError(f"expected float32, bfloat16 or float16 for Triton, got {dtype}")


def can_move_words(rgb_u8_NHWC: Tensor) -> bool:
    """Whether each picture of a contiguous batch starts at a 4-byte word and holds whole groups of four pixels."""
    _, height, width, _ = rgb_u8_NHWC.shape
    return height * width % 4 == 0 and rgb_u8_NHWC.data_ptr() % 4 == 0
