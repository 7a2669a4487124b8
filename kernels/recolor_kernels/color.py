"""sRGB images to the tensors of networks, and back."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color_math, launch, memory, reference
from recolor_kernels.gradients import differentiable, differentiable_once
from recolor_kernels.launch import (
    Impl,
    check_lab,
    check_rgb_u8,
    check_triton_dtype,
    choose,
    pixels_per_thread,
    register,
)

PIXELS_PER_PROGRAM = 2048  # a multiple of 8, so that threads can access groups of 8 pixels

# ---- kernels ----


@triton.jit
def _rgb_to_lab_kernel(
    rgb_ptr, l_ptr, ab_ptr, pixels, blocks,
    EXACT: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    place = image * pixels + first
    red, green, blue = memory.load_rgb(rgb_ptr + place * 3, left, GROUP, BLOCK)
    lightness, a, b = color_math.rgb_to_lab(red, green, blue, EXACT)
    memory.store(l_ptr + place, lightness, left, BLOCK)
    memory.store_two(ab_ptr, a, b, image, first, pixels, left, LAST, BLOCK)


@triton.jit
def _rgb_to_gray_kernel(
    rgb_ptr, gray_ptr, target_ptr, pixels, blocks, LAST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    place = image * pixels + first
    red, green, blue = memory.load_rgb(rgb_ptr + place * 3, left, GROUP, BLOCK)
    r, g, b = color_math.level_to_value(red), color_math.level_to_value(green), color_math.level_to_value(blue)
    memory.store(gray_ptr + place, color_math.luma(r, g, b), left, BLOCK)
    memory.store_three(target_ptr, r, g, b, image, first, pixels, left, LAST, GROUP, BLOCK)


@triton.jit
def _load_lab(l_ptr, ab_ptr, image, first, pixels, left, BLOCK: tl.constexpr):
    plane = ab_ptr + image * pixels * 2 + first
    lightness = memory.load(l_ptr + image * pixels + first, left, BLOCK)
    return lightness, memory.load(plane, left, BLOCK), memory.load(plane + pixels, left, BLOCK)


@triton.jit
def _lab_to_rgb_u8_kernel(l_ptr, ab_ptr, rgb_ptr, pixels, blocks, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    lightness, a, b = _load_lab(l_ptr, ab_ptr, image, first, pixels, left, BLOCK)
    fx, fy, fz = color_math.lab_to_f(lightness, a, b)
    red, green, blue = color_math.f_to_linear(fx, fy, fz)
    place = rgb_ptr + (image * pixels + first) * 3
    memory.store_rgb(
        place, color_math.to_level(red), color_math.to_level(green), color_math.to_level(blue), left, GROUP, BLOCK
    )


@triton.jit
def _lab_to_rgb_kernel(l_ptr, ab_ptr, rgb_ptr, pixels, blocks, BLOCK: tl.constexpr):
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    lightness, a, b = _load_lab(l_ptr, ab_ptr, image, first, pixels, left, BLOCK)
    fx, fy, fz = color_math.lab_to_f(lightness, a, b)
    red, green, blue = color_math.f_to_linear(fx, fy, fz)
    plane = rgb_ptr + image * pixels * 3 + first
    memory.store(plane, _to_value(red), left, BLOCK)
    memory.store(plane + pixels, _to_value(green), left, BLOCK)
    memory.store(plane + pixels + pixels, _to_value(blue), left, BLOCK)


@triton.jit
def _to_value(linear):
    value, _ = color_math.srgb_encode(linear)
    return tl.where(value < 0, 0.0, tl.where(value > 1, 1.0, value)) * 2 - 1  # keeps NaN, unlike min and max


@triton.jit
def _lab_to_rgb_backward_kernel(l_ptr, ab_ptr, d_rgb_ptr, d_l_ptr, d_ab_ptr, pixels, blocks, BLOCK: tl.constexpr):
    image, first, left = memory.locate(tl.program_id(0), pixels, blocks, BLOCK)
    lightness, a, b = _load_lab(l_ptr, ab_ptr, image, first, pixels, left, BLOCK)
    fx, fy, fz = color_math.lab_to_f(lightness, a, b)
    red, green, blue = color_math.f_to_linear(fx, fy, fz)
    d_plane = d_rgb_ptr + image * pixels * 3 + first
    d_red = memory.load(d_plane, left, BLOCK) * _slope(red)
    d_green = memory.load(d_plane + pixels, left, BLOCK) * _slope(green)
    d_blue = memory.load(d_plane + pixels + pixels, left, BLOCK) * _slope(blue)
    d_fx, d_fy, d_fz = color_math.f_to_linear_backward(fx, fy, fz, d_red, d_green, d_blue)
    d_lightness, d_a, d_b = color_math.lab_to_f_backward(d_fx, d_fy, d_fz)
    plane = d_ab_ptr + image * pixels * 2 + first
    memory.store(d_l_ptr + image * pixels + first, d_lightness, left, BLOCK)
    memory.store(plane, d_a, left, BLOCK)
    memory.store(plane + pixels, d_b, left, BLOCK)


@triton.jit
def _slope(linear):
    """The derivative of _to_value, zero outside the gamut."""
    value, slope = color_math.srgb_encode(linear)
    return tl.where((value < 0) | (value > 1), 0.0, 2 * slope)


# ---- launchers ----


def _launch(kernel: Any, n: int, height: int, width: int, *, block: int | None = None, **arguments: Any) -> None:
    """Launch over all pixels of N images, in blocks of `block` pixels; without pixels launch nothing."""
    block = block or PIXELS_PER_PROGRAM
    blocks = triton.cdiv(height * width, block)
    if n * blocks > 0:
        launch.launch(kernel, n * blocks, **arguments, pixels=height * width, blocks=blocks, BLOCK=block)


def empty_pair(
    n: int, rgb_u8_NHWC: Tensor, channels: int, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Uninitialized (n,1,H,W) and (n,channels,H,W), for images of that size, on their device."""
    _, height, width, _ = rgb_u8_NHWC.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    one, other = (
        torch.empty((n, c, height, width), dtype=dtype, device=rgb_u8_NHWC.device, memory_format=memory_format)
        for c in (1, channels)
    )
    return one, other


def _launch_rgb_to_lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    check_triton_dtype(dtype)
    rgb = rgb_u8_NHWC.contiguous()
    lightness, ab = empty_pair(len(rgb), rgb, 2, dtype, channels_last)
    _launch(
        _rgb_to_lab_kernel, *rgb.shape[:3], rgb_ptr=rgb, l_ptr=lightness, ab_ptr=ab, EXACT=is_exact(dtype),
        LAST=channels_last, GROUP=pixels_per_thread(rgb, planes=dtype), block=_block(channels_last),
    )  # fmt: skip
    return lightness, ab


def _block(channels_last: bool) -> int:
    """Pixels of a program. Interleaved channels need more registers: larger blocks spill on sm_100 with Triton 3.6."""
    return PIXELS_PER_PROGRAM // 2 if channels_last else PIXELS_PER_PROGRAM


def is_exact(dtype: torch.dtype) -> bool:
    """Whether results of this type need the exact polynomials: 16-bit types round away the others' errors."""
    return dtype == torch.float32


def _launch_rgb_to_gray(rgb_u8_NHWC: Tensor, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    check_triton_dtype(dtype)
    rgb = rgb_u8_NHWC.contiguous()
    gray, target = empty_pair(len(rgb), rgb, 3, dtype, channels_last)
    _launch(
        _rgb_to_gray_kernel, *rgb.shape[:3], rgb_ptr=rgb, gray_ptr=gray, target_ptr=target, LAST=channels_last,
        GROUP=pixels_per_thread(rgb, planes=dtype), block=_block(channels_last),
    )  # fmt: skip
    return gray, target


def _launch_lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    check_triton_dtype(l_N1HW.dtype)
    rgb = _empty_images(l_N1HW)
    lightness, ab = l_N1HW.contiguous(), ab_N2HW.contiguous()
    group = pixels_per_thread(rgb, planes=ab.dtype)
    _launch(_lab_to_rgb_u8_kernel, *rgb.shape[:3], l_ptr=lightness, ab_ptr=ab, rgb_ptr=rgb, GROUP=group)
    return rgb


def _empty_images(l_N1HW: Tensor) -> Tensor:
    n, _, height, width = l_N1HW.shape
    return l_N1HW.new_empty((n, height, width, 3), dtype=torch.uint8)


def _launch_lab_to_rgb(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    check_triton_dtype(l_N1HW.dtype)
    rgb = _empty_rgb(l_N1HW, ab_N2HW)
    lightness, ab = l_N1HW.contiguous(), ab_N2HW.contiguous()
    _launch(_lab_to_rgb_kernel, len(rgb), *rgb.shape[2:], l_ptr=lightness, ab_ptr=ab, rgb_ptr=rgb)
    return rgb


def _empty_rgb(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    n, _, height, width = l_N1HW.shape
    return l_N1HW.new_empty((n, 3, height, width))


def _launch_lab_to_rgb_backward(l_N1HW: Tensor, ab_N2HW: Tensor, d_rgb_N3HW: Tensor) -> tuple[Tensor, Tensor]:
    lightness, ab, d_rgb = l_N1HW.contiguous(), ab_N2HW.contiguous(), d_rgb_N3HW.contiguous()
    d_lightness, d_ab = _empty_lab(lightness, ab, d_rgb)
    _launch(
        _lab_to_rgb_backward_kernel, len(d_rgb), *d_rgb.shape[2:], l_ptr=lightness, ab_ptr=ab, d_rgb_ptr=d_rgb,
        d_l_ptr=d_lightness, d_ab_ptr=d_ab, block=PIXELS_PER_PROGRAM // 2,
    )  # fmt: skip
    return d_lightness, d_ab


def _empty_lab(l_N1HW: Tensor, ab_N2HW: Tensor, d_rgb_N3HW: Tensor) -> tuple[Tensor, Tensor]:
    return l_N1HW.new_empty(l_N1HW.shape), ab_N2HW.new_empty(ab_N2HW.shape)


# ---- registration ----


def reference_rgb_to_lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    """The reference with the arguments of an op, which cannot take a memory format."""
    return reference.rgb_to_lab(rgb_u8_NHWC, dtype, torch.channels_last if channels_last else torch.contiguous_format)


def reference_rgb_to_gray(rgb_u8_NHWC: Tensor, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    """As reference_rgb_to_lab."""
    return reference.rgb_to_gray(rgb_u8_NHWC, dtype, torch.channels_last if channels_last else torch.contiguous_format)


_rgb_to_lab = register(
    "rgb_to_lab(Tensor rgb_u8_NHWC, ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    cpu=reference_rgb_to_lab,
    cuda=_launch_rgb_to_lab,
    fake=lambda rgb, dtype, channels_last: empty_pair(len(rgb), rgb, 2, dtype, channels_last),
)
_rgb_to_gray = register(
    "rgb_to_gray(Tensor rgb_u8_NHWC, ScalarType dtype, bool channels_last) -> (Tensor, Tensor)",
    cpu=reference_rgb_to_gray,
    cuda=_launch_rgb_to_gray,
    fake=lambda rgb, dtype, channels_last: empty_pair(len(rgb), rgb, 3, dtype, channels_last),
)
_lab_to_rgb_u8 = register(
    "lab_to_rgb_u8(Tensor l_N1HW, Tensor ab_N2HW) -> Tensor",
    cpu=reference.lab_to_rgb_u8,
    cuda=_launch_lab_to_rgb_u8,
    fake=lambda lightness, ab: _empty_images(lightness),
)
_lab_to_rgb = register(
    "lab_to_rgb(Tensor l_N1HW, Tensor ab_N2HW) -> Tensor",
    cpu=reference.lab_to_rgb,
    cuda=_launch_lab_to_rgb,
    fake=_empty_rgb,
)
_lab_to_rgb_backward = register(
    "lab_to_rgb_backward(Tensor l_N1HW, Tensor ab_N2HW, Tensor d_rgb_N3HW) -> (Tensor, Tensor)",
    cpu=reference.lab_to_rgb_backward,
    cuda=_launch_lab_to_rgb_backward,
    fake=_empty_lab,
)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_by(gradients: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The backward pass of lab_to_rgb, whose gradients the op or the launcher computes."""

    def backward(ctx: Any, d_rgb_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        sources = (*ctx.saved_tensors, d_rgb_N3HW)
        with torch.no_grad():
            d_lightness, d_ab = gradients(*sources)
        return differentiable_once(d_lightness, *sources), differentiable_once(d_ab, *sources)

    return backward


_lab_to_rgb.register_autograd(_backward_by(_lab_to_rgb_backward), setup_context=_save_inputs)
_triton_lab_to_rgb = differentiable(_launch_lab_to_rgb, _save_inputs, _backward_by(_launch_lab_to_rgb_backward))

# ---- public functions ----


def rgb_to_lab(
    rgb_u8_NHWC: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """sRGB images to L (N,1,H,W) = L*/50 - 1 and ab (N,2,H,W) = (a*, b*)/110, both about [-1, 1].

    rgb_u8_NHWC: uint8 (N,H,W,3), any strides. dtype, memory_format: of the results, contiguous or channels last; Triton
    computes in float32 and writes float32, bfloat16 or float16. Raises ValueError for another shape, type, format or
    impl. Not differentiable (integer input). Constants: scikit-image's (sRGB, IEC 61966-2-1; CIE L*a*b*, D65).
    """
    check_rgb_u8(rgb_u8_NHWC)
    last = is_channels_last(memory_format)
    function = choose(impl, rgb_u8_NHWC, op=_rgb_to_lab, triton=_launch_rgb_to_lab, reference=reference_rgb_to_lab)
    lightness, ab = function(rgb_u8_NHWC, dtype, last)
    return lightness, ab


def rgb_to_gray(
    rgb_u8_NHWC: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """sRGB images to gray (N,1,H,W), Rec. 601 luma, and RGB (N,3,H,W), both level/127.5 - 1 in [-1, 1].

    rgb_u8_NHWC: uint8 (N,H,W,3), any strides. dtype, memory_format: of the results, contiguous or channels last; Triton
    computes in float32 and writes float32, bfloat16 or float16. Raises ValueError for another shape, type, format or
    impl. Not differentiable (integer input).
    """
    check_rgb_u8(rgb_u8_NHWC)
    last = is_channels_last(memory_format)
    function = choose(impl, rgb_u8_NHWC, op=_rgb_to_gray, triton=_launch_rgb_to_gray, reference=reference_rgb_to_gray)
    gray, target = function(rgb_u8_NHWC, dtype, last)
    return gray, target


def is_channels_last(memory_format: torch.memory_format) -> bool:
    """Whether it is channels last. Raises ValueError unless it is that or contiguous."""
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"expected torch.contiguous_format or torch.channels_last, got {memory_format}")
    return memory_format == torch.channels_last


def lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor, impl: Impl = "auto") -> Tensor:
    """L = L*/50 - 1 (N,1,H,W) and ab = (a*, b*)/110 (N,2,H,W) to sRGB images, uint8 (N,H,W,3), clamped to the gamut.

    Any strides; one floating type for both, for Triton float32, bfloat16 or float16. Raises ValueError for other
    shapes, types or impl. Not differentiable (integer result). Constants: those of rgb_to_lab.
    """
    check_lab(l_N1HW, ab_N2HW)
    function = choose(impl, l_N1HW, op=_lab_to_rgb_u8, triton=_launch_lab_to_rgb_u8, reference=reference.lab_to_rgb_u8)
    rgb: Tensor = function(l_N1HW, ab_N2HW)
    return rgb


def lab_to_rgb(l_N1HW: Tensor, ab_N2HW: Tensor, impl: Impl = "auto") -> Tensor:
    """L = L*/50 - 1 (N,1,H,W) and ab = (a*, b*)/110 (N,2,H,W) to sRGB in [-1, 1] (N,3,H,W), clamped to the gamut.

    Any strides; one floating type for both and the result, for Triton float32, bfloat16 or float16. Differentiable
    once, impl="reference" any number of times; the gradient is zero outside the gamut and passes at its edge. Raises
    ValueError for other shapes, types or impl, RuntimeError for a second derivative. Constants: those of rgb_to_lab.
    """
    check_lab(l_N1HW, ab_N2HW)
    function = choose(impl, l_N1HW, op=_lab_to_rgb, triton=_triton_lab_to_rgb, reference=reference.lab_to_rgb)
    rgb: Tensor = function(l_N1HW, ab_N2HW)
    return rgb
