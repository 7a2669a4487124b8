"""sRGB pictures to what networks see, and back: the kernels, their launchers, their registration, the public functions.

Each program converts pixels of one picture, so that only the picture's offset needs 64 bits of arithmetic per program.
uint8 NHWC is read as 32-bit words, three for four pixels, wherever pictures start at a word; else byte by byte.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import reference
from recolor_kernels.launch import (
    PIXELS_PER_PROGRAM,
    Impl,
    can_move_words,
    check_lab,
    check_rgb_u8,
    check_triton_dtype,
    choose,
)

# ---- kernels ----


@triton.jit
def _load_rgb(rgb_ptr, image, block, pixels, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Levels of BLOCK pixels of a picture, int32, in order."""
    start = image.to(tl.int64) * pixels * 3
    if WORDS:
        group = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        inside = group < pixels // 4
        words = (rgb_ptr + start).to(tl.pointer_type(tl.int32)) + group.to(tl.int64) * 3
        first = tl.load(words, mask=inside, other=0)
        second = tl.load(words + 1, mask=inside, other=0)
        third = tl.load(words + 2, mask=inside, other=0)
        red = _in_order(first, first >> 24, second >> 16, third >> 8)
        green = _in_order(first >> 8, second, second >> 24, third >> 16)
        blue = _in_order(first >> 16, second >> 8, third, third >> 24)
    else:
        pixel = block * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        bytes = rgb_ptr + start + pixel.to(tl.int64) * 3
        red = tl.load(bytes, mask=inside, other=0).to(tl.int32)
        green = tl.load(bytes + 1, mask=inside, other=0).to(tl.int32)
        blue = tl.load(bytes + 2, mask=inside, other=0).to(tl.int32)
    return red, green, blue


@triton.jit
def _in_order(one, two, three, four):
    """The low bytes of four words each, as one vector in the order of pixels."""
    return tl.interleave(tl.interleave(one & 255, three & 255), tl.interleave(two & 255, four & 255))


@triton.jit
def _store_rgb(rgb_ptr, red, green, blue, image, block, pixels, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of _load_rgb, from int32 levels in 0..255."""
    start = image.to(tl.int64) * pixels * 3
    if WORDS:
        group = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        inside = group < pixels // 4
        words = (rgb_ptr + start).to(tl.pointer_type(tl.int32)) + group.to(tl.int64) * 3
        red0, red1, red2, red3 = _by_fours(red, BLOCK)
        green0, green1, green2, green3 = _by_fours(green, BLOCK)
        blue0, blue1, blue2, blue3 = _by_fours(blue, BLOCK)
        tl.store(words, red0 | (green0 << 8) | (blue0 << 16) | (red1 << 24), mask=inside)
        tl.store(words + 1, green1 | (blue1 << 8) | (red2 << 16) | (green2 << 24), mask=inside)
        tl.store(words + 2, blue2 | (red3 << 8) | (green3 << 16) | (blue3 << 24), mask=inside)
    else:
        pixel = block * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        bytes = rgb_ptr + start + pixel.to(tl.int64) * 3
        tl.store(bytes, red.to(tl.uint8), mask=inside)
        tl.store(bytes + 1, green.to(tl.uint8), mask=inside)
        tl.store(bytes + 2, blue.to(tl.uint8), mask=inside)


@triton.jit
def _by_fours(values, BLOCK: tl.constexpr):
    """The first, second, third and fourth of every four values."""
    even, odd = tl.split(tl.reshape(values, (BLOCK // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _srgb_decode(level):
    """8-bit sRGB levels to linear values (IEC 61966-2-1). The power is a polynomial: only 256 inputs exist.

    Least squares over the levels above the knee, weighted for the smallest worst error in L*a*b*: 2e-4 Lab units.
    """
    value = level.to(tl.float32) * (1 / 255)
    power = 0.18991147124174498
    power = power * value - 0.9376594615826623
    power = power * value + 2.01153698483126
    power = power * value - 2.494529787605562
    power = power * value + 2.0441790079907545
    power = power * value - 1.2783881524375589
    power = power * value + 0.9539636186206848
    power = power * value + 0.47418333199965146
    power = power * value + 0.03596386600703255
    power = power * value + 0.0008403982488610302
    return tl.where(level > 10, power, value * (1 / 12.92))


@triton.jit
def _srgb_encode(linear):
    """Linear values to 8-bit sRGB levels, rounded to nearest and clamped to the gamut."""
    root = tl.exp2(tl.log2(tl.maximum(linear, 1e-9)) * (1 / 2.4))
    value = tl.where(linear > 0.0031308, 1.055 * root - 0.055, 12.92 * linear)
    return (tl.minimum(tl.maximum(value, 0.0), 1.0) * 255 + 0.5).to(tl.int32)


@triton.jit
def _lab_f(t):
    return tl.where(t > 0.008856, tl.exp2(tl.log2(tl.maximum(t, 1e-9)) * (1 / 3)), 7.787 * t + 16 / 116)


@triton.jit
def _lab_f_inverse(f):
    return tl.where(f > 0.2068966, f * f * f, (f - 16 / 116) * (1 / 7.787))


@triton.jit
def _rgb_to_lab_kernel(rgb_ptr, condition_ptr, target_ptr, pixels, blocks, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    red, green, blue = _load_rgb(rgb_ptr, image, block, pixels, WORDS, BLOCK)
    r, g, b = _srgb_decode(red), _srgb_decode(green), _srgb_decode(blue)
    # scikit-image's xyz_from_rgb, each row divided by the D65 white
    fx = _lab_f((0.412453 / 0.95047) * r + (0.357580 / 0.95047) * g + (0.180423 / 0.95047) * b)
    fy = _lab_f(0.212671 * r + 0.715160 * g + 0.072169 * b)
    fz = _lab_f((0.019334 / 1.08883) * r + (0.119193 / 1.08883) * g + (0.950227 / 1.08883) * b)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    condition_row = condition_ptr + image.to(tl.int64) * pixels
    target_row = target_ptr + image.to(tl.int64) * pixels * 2
    tl.store(condition_row + pixel, (fy * (116 / 50) - (16 / 50 + 1)).to(condition_ptr.dtype.element_ty), mask=inside)
    tl.store(target_row + pixel, ((fx - fy) * (500 / 110)).to(target_ptr.dtype.element_ty), mask=inside)
    tl.store(target_row + pixels + pixel, ((fy - fz) * (200 / 110)).to(target_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _lab_to_rgb_u8_kernel(l_ptr, ab_ptr, rgb_ptr, pixels, blocks, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    ab_row = ab_ptr + image.to(tl.int64) * pixels * 2
    lightness = tl.load(l_ptr + image.to(tl.int64) * pixels + pixel, mask=inside, other=0).to(tl.float32)
    a = tl.load(ab_row + pixel, mask=inside, other=0).to(tl.float32)
    b = tl.load(ab_row + pixels + pixel, mask=inside, other=0).to(tl.float32)
    fy = (lightness + 1) * (50 / 116) + 16 / 116
    x = _lab_f_inverse(fy + a * (110 / 500)) * 0.95047
    y = _lab_f_inverse(fy)
    z = _lab_f_inverse(tl.maximum(fy - b * (110 / 200), 0.0)) * 1.08883
    # the inverse of scikit-image's xyz_from_rgb
    red = _srgb_encode(3.2404813432005266 * x - 1.537151516271318 * y - 0.4985363261688878 * z)
    green = _srgb_encode(-0.9692549499965682 * x + 1.8759900014898907 * y + 0.041555926558292836 * z)
    blue = _srgb_encode(0.05564663913517715 * x - 0.20404133836651123 * y + 1.0573110696453443 * z)
    _store_rgb(rgb_ptr, red, green, blue, image, block, pixels, WORDS, BLOCK)


@triton.jit
def _rgb_to_gray_kernel(rgb_ptr, condition_ptr, target_ptr, pixels, blocks, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    red, green, blue = _load_rgb(rgb_ptr, image, block, pixels, WORDS, BLOCK)
    r = red.to(tl.float32) * (1 / 127.5) - 1
    g = green.to(tl.float32) * (1 / 127.5) - 1
    b = blue.to(tl.float32) * (1 / 127.5) - 1
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    condition_row = condition_ptr + image.to(tl.int64) * pixels
    target_row = target_ptr + image.to(tl.int64) * pixels * 3
    tl.store(condition_row + pixel, (0.299 * r + 0.587 * g + 0.114 * b).to(condition_ptr.dtype.element_ty), mask=inside)
    tl.store(target_row + pixel, r.to(target_ptr.dtype.element_ty), mask=inside)
    tl.store(target_row + pixels + pixel, g.to(target_ptr.dtype.element_ty), mask=inside)
    tl.store(target_row + 2 * pixels + pixel, b.to(target_ptr.dtype.element_ty), mask=inside)


# ---- launchers ----


def _grid(pictures: int, pixels: int) -> tuple[tuple[int], int]:
    """Programs, and how many of them convert one picture."""
    blocks = triton.cdiv(pixels, PIXELS_PER_PROGRAM)
    return (pictures * blocks,), blocks


def _launch_from_rgb(kernel: Any, rgb_u8_NHWC: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pictures to a condition (N,1,H,W) and a target (N,channels,H,W)."""
    check_triton_dtype(dtype)
    rgb = rgb_u8_NHWC.contiguous()
    condition, target = _empty_pair(rgb, channels, dtype)
    n, height, width, _ = rgb.shape
    if rgb.numel() > 0:
        grid, blocks = _grid(n, height * width)
        kernel[grid](
            rgb_ptr=rgb,
            condition_ptr=condition,
            target_ptr=target,
            pixels=height * width,
            blocks=blocks,
            WORDS=can_move_words(rgb),
            BLOCK=PIXELS_PER_PROGRAM,
        )
    return condition, target


def _empty_pair(rgb: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n, height, width, _ = rgb.shape
    return rgb.new_empty((n, 1, height, width), dtype=dtype), rgb.new_empty((n, channels, height, width), dtype=dtype)


def _launch_rgb_to_lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _launch_from_rgb(_rgb_to_lab_kernel, rgb_u8_NHWC, 2, dtype)


def _launch_rgb_to_gray(rgb_u8_NHWC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _launch_from_rgb(_rgb_to_gray_kernel, rgb_u8_NHWC, 3, dtype)


def _launch_lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    check_triton_dtype(l_N1HW.dtype)
    n, _, height, width = l_N1HW.shape
    rgb = l_N1HW.new_empty((n, height, width, 3), dtype=torch.uint8)
    if rgb.numel() > 0:
        grid, blocks = _grid(n, height * width)
        _lab_to_rgb_u8_kernel[grid](
            l_ptr=l_N1HW.contiguous(),
            ab_ptr=ab_N2HW.contiguous(),
            rgb_ptr=rgb,
            pixels=height * width,
            blocks=blocks,
            WORDS=can_move_words(rgb),
            BLOCK=PIXELS_PER_PROGRAM,
        )
    return rgb


# ---- registration ----


def _register(schema: str, cpu: Callable[..., Any], cuda: Callable[..., Any]) -> Any:
    """An op under the reference's name, which is its CPU implementation."""
    name = f"recolor_kernels::{cpu.__name__}"
    op = torch.library.custom_op(name, cpu, mutates_args=(), device_types="cpu", schema=schema)
    op.register_kernel("cuda")(cuda)
    return op


_FROM_RGB = "(Tensor rgb_u8_NHWC, ScalarType dtype) -> (Tensor, Tensor)"
_rgb_to_lab = _register(_FROM_RGB, reference.rgb_to_lab, _launch_rgb_to_lab)
_rgb_to_gray = _register(_FROM_RGB, reference.rgb_to_gray, _launch_rgb_to_gray)
_lab_to_rgb_u8 = _register("(Tensor l_N1HW, Tensor ab_N2HW) -> Tensor", reference.lab_to_rgb_u8, _launch_lab_to_rgb_u8)


@_rgb_to_lab.register_fake
def _(rgb_u8_NHWC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _empty_pair(rgb_u8_NHWC, 2, dtype)


@_rgb_to_gray.register_fake
def _(rgb_u8_NHWC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _empty_pair(rgb_u8_NHWC, 3, dtype)


@_lab_to_rgb_u8.register_fake
def _(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    n, _, height, width = l_N1HW.shape
    return l_N1HW.new_empty((n, height, width, 3), dtype=torch.uint8)


# ---- public functions ----


def rgb_to_lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype = torch.float32, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """sRGB pictures to L (N,1,H,W) = L*/50 - 1 and ab (N,2,H,W) = ab/110, contiguous.

    rgb_u8_NHWC: uint8 (N,H,W,3), any strides. dtype: of the results; Triton computes in float32 and writes float32,
    bfloat16 or float16. Raises ValueError for another shape, type or impl. Not differentiable (integers come in).
    Constants: scikit-image's (sRGB, IEC 61966-2-1; CIE L*a*b*, D65).
    """
    check_rgb_u8(rgb_u8_NHWC)
    function = choose(impl, rgb_u8_NHWC, op=_rgb_to_lab, triton=_launch_rgb_to_lab, reference=reference.rgb_to_lab)
    lightness, ab = function(rgb_u8_NHWC, dtype)
    return lightness, ab


def rgb_to_gray(rgb_u8_NHWC: Tensor, dtype: torch.dtype = torch.float32, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """sRGB pictures to gray (N,1,H,W), Rec. 601 luma, and RGB (N,3,H,W), both v/127.5 - 1 in [-1, 1], contiguous.

    rgb_u8_NHWC: uint8 (N,H,W,3), any strides. dtype: of the results; Triton computes in float32 and writes float32,
    bfloat16 or float16. Raises ValueError for another shape, type or impl. Not differentiable (integers come in).
    """
    check_rgb_u8(rgb_u8_NHWC)
    function = choose(impl, rgb_u8_NHWC, op=_rgb_to_gray, triton=_launch_rgb_to_gray, reference=reference.rgb_to_gray)
    gray, target = function(rgb_u8_NHWC, dtype)
    return gray, target


def lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor, impl: Impl = "auto") -> Tensor:
    """L = L*/50 - 1 (N,1,H,W) and ab = ab/110 (N,2,H,W) to sRGB pictures, uint8 (N,H,W,3), clamped to the gamut.

    Any strides; one floating type for both, for Triton float32, bfloat16 or float16. Raises ValueError for other
    shapes, types or impl. Not differentiable (integers come out). Constants: scikit-image's.
    """
    check_lab(l_N1HW, ab_N2HW)
    function = choose(impl, l_N1HW, op=_lab_to_rgb_u8, triton=_launch_lab_to_rgb_u8, reference=reference.lab_to_rgb_u8)
    rgb: Tensor = function(l_N1HW, ab_N2HW)
    return rgb
