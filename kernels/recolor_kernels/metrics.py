"""Metrics of colorized images against the originals, all in one pass over the pixels."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color_math, constants, launch, memory, reference
from recolor_kernels.launch import Impl, check_rgb_u8, choose, pixels_per_thread, register

PIXELS_PER_PROGRAM = 1024  # at most 8,256: the largest sum of squares must fit 32 bits
COLORS, LEVELS = 2, 13  # sums per image: of floats, and of integers

# ---- kernels ----


@triton.jit
def _color_metrics_kernel(
    prediction_ptr, target_ptr, colors_ptr, levels_ptr, pixels, blocks,
    COLORS: tl.constexpr, LEVELS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of one block, in the order of reference.color_metrics."""
    program = tl.program_id(0).to(tl.int64)
    image, first, left = memory.locate(program, pixels, blocks, BLOCK)
    place = (image * pixels + first) * 3
    red1, green1, blue1 = memory.load_rgb(prediction_ptr + place, left, GROUP, BLOCK)
    red2, green2, blue2 = memory.load_rgb(target_ptr + place, left, GROUP, BLOCK)
    levels_ptr += program * LEVELS
    red, green, blue = red1 - red2, green1 - green2, blue1 - blue2
    tl.store(levels_ptr, tl.sum(red * red + green * green + blue * blue))
    _store_opponents(levels_ptr + 1, red1, green1, blue1)
    _store_opponents(levels_ptr + 7, red2, green2, blue2)
    l1, a1, b1 = color_math.rgb_to_lab_units(red1, green1, blue1)
    l2, a2, b2 = color_math.rgb_to_lab_units(red2, green2, blue2)
    inside = tl.arange(0, BLOCK) < left
    colors_ptr += program * COLORS
    tl.store(colors_ptr, tl.sum(tl.where(inside, _ciede2000(l1, a1, b1, l2, a2, b2), 0.0)))
    tl.store(colors_ptr + 1, tl.sum(tl.where(inside, tl.abs(a1 - a2) + tl.abs(b1 - b2), 0.0)))


@triton.jit
def _store_opponents(ptr, red, green, blue):
    """Sums over a block for colorfulness, of rg = R - G and yb = R + G - 2 B."""
    rg, yb = red - green, red + green - 2 * blue
    tl.store(ptr, tl.sum(rg))
    tl.store(ptr + 1, tl.sum(yb))
    tl.store(ptr + 2, tl.sum(tl.abs(rg)))
    tl.store(ptr + 3, tl.sum(tl.abs(yb)))
    tl.store(ptr + 4, tl.sum(rg * rg))
    tl.store(ptr + 5, tl.sum(yb * yb))


ARC_TANGENT = tl.constexpr(constants.ARC_TANGENT)
TINY = tl.constexpr(1e-20)  # avoids division by zero


@triton.jit
def _ciede2000(l1, a1, b1, l2, a2, b2):
    """Delta E 2000, with hues as unit vectors instead of angles: one arc tangent, no cosines, no wrapping at 360."""
    stretch = 1.5 - 0.5 * _of_seventh((tl.sqrt(a1 * a1 + b1 * b1) + tl.sqrt(a2 * a2 + b2 * b2)) * 0.5)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = tl.sqrt(a1 * a1 + b1 * b1), tl.sqrt(a2 * a2 + b2 * b2)
    x1, y1, x2, y2 = (
        a1 / tl.maximum(c1, TINY),
        b1 / tl.maximum(c1, TINY),
        a2 / tl.maximum(c2, TINY),
        b2 / tl.maximum(c2, TINY),
    )
    chroma, d_chroma = (c1 + c2) * 0.5, c2 - c1
    # 2 sqrt(c1 c2) sin((h2 - h1) / 2): the chord between both directions
    chord = tl.sqrt(c1 * c2 * ((x1 - x2) * (x1 - x2) + (y1 - y2) * (y1 - y2)))
    d_hue = tl.where(x1 * y2 - x2 * y1 < 0, -chord, chord)
    # The mean hue is the direction of their sum. If they are nearly opposite, the sum is too short for a precise
    # direction; then the mean hue is perpendicular to their difference.
    turn = tl.where(x1 * y2 - x2 * y1 < 0, -1.0, 1.0)
    opposite = x1 * x2 + y1 * y2 < 0
    x = tl.where(opposite, turn * (y2 - y1), x1 + x2)
    y = tl.where(opposite, turn * (x1 - x2), y1 + y2)
    length = tl.maximum(tl.sqrt(x * x + y * y), TINY)
    x, y = x / length, y / length
    x2, y2 = x * x - y * y, 2 * x * y  # cosine and sine of 2 hue, then of 3 hue and 4 hue
    x3, y3 = x2 * x - y2 * y, y2 * x + x2 * y
    x4, y4 = x2 * x2 - y2 * y2, 2 * x2 * y2
    t = 1 - 0.17 * (0.8660254037844387 * x + 0.5 * y)  # cos(h - 30)
    t += 0.24 * x2
    t += 0.32 * (0.9945218953682733 * x3 - 0.10452846326765347 * y3)  # cos(3 h + 6)
    t -= 0.20 * (0.45399049973954675 * x4 + 0.8910065241883679 * y4)  # cos(4 h - 63)
    off = (l1 + l2) * 0.5 - 50
    by_l = (l2 - l1) / (1 + 0.015 * off * off / tl.sqrt(20 + off * off))
    by_c = d_chroma / (1 + 0.045 * chroma)
    by_h = d_hue / (1 + 0.015 * chroma * t)
    rotation = -2 * _of_seventh(chroma) * _sine_of_blue(x, y)
    return tl.sqrt(tl.maximum(by_l * by_l + by_c * by_c + by_h * by_h + rotation * by_c * by_h, 0.0))


@triton.jit
def _of_seventh(chroma):
    """sqrt(c^7 / (c^7 + 25^7))"""
    share = chroma * (1 / 25)
    cube = share * share * share
    seventh = cube * cube * share
    return tl.sqrt(seventh / (seventh + 1))


@triton.jit
def _sine_of_blue(x, y):
    """sin(60 degrees x exp(-((h - 275) / 25)^2)) of the hue with cosine x and sine y."""
    # cosine and sine of h - 275 degrees
    near = 0.08715574274765789 * x - 0.9961946980917455 * y
    aside = tl.abs(0.08715574274765789 * y + 0.9961946980917455 * x)
    # |h - 275 degrees| in [0, pi], by the arc tangent of a ratio in [0, 1]
    swap = aside > tl.abs(near)
    ratio = tl.minimum(aside, tl.abs(near)) / tl.maximum(tl.maximum(aside, tl.abs(near)), TINY)
    angle = _arc_tangent(ratio)
    angle = tl.where(swap, 1.5707963267948966 - angle, angle)
    angle = tl.where(near < 0, 3.141592653589793 - angle, angle)
    turns = angle * 2.291831180523293  # in units of 25 degrees
    phi = 1.0471975511965976 * tl.exp(-turns * turns)  # in [0, 60 degrees], where six terms of the sine are exact
    square = phi * phi
    series = 1 - square * (1 / 110)
    series = 1 - square * (1 / 72) * series
    series = 1 - square * (1 / 42) * series
    series = 1 - square * (1 / 20) * series
    series = 1 - square * (1 / 6) * series
    return phi * series


@triton.jit
def _arc_tangent(ratio):
    """The arc tangent of a ratio in [0, 1], within 2e-7."""
    return color_math.polynomial(ratio * ratio, ARC_TANGENT, 7) * ratio


# ---- launcher ----


def _launch_color_metrics(prediction_u8_NHWC: Tensor, target_u8_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    prediction, target = prediction_u8_NHWC.contiguous(), target_u8_NHWC.contiguous()
    n, height, width, _ = prediction.shape
    blocks = triton.cdiv(height * width, PIXELS_PER_PROGRAM)
    colors = prediction.new_empty((n, blocks, COLORS), dtype=torch.float32)
    levels = prediction.new_empty((n, blocks, LEVELS), dtype=torch.int32)
    if n * blocks > 0:
        launch.launch(
            _color_metrics_kernel, n * blocks, prediction_ptr=prediction, target_ptr=target, colors_ptr=colors,
            levels_ptr=levels, pixels=height * width, blocks=blocks, COLORS=COLORS, LEVELS=LEVELS,
            GROUP=pixels_per_thread(prediction, target), BLOCK=PIXELS_PER_PROGRAM,
        )  # fmt: skip
    return colors.sum(1, dtype=torch.float64), levels.sum(1, dtype=torch.int64)


# ---- registration ----


def _empty_sums(prediction_u8_NHWC: Tensor, target_u8_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    n = len(prediction_u8_NHWC)
    colors = prediction_u8_NHWC.new_empty((n, COLORS), dtype=torch.float64)
    return colors, colors.new_empty((n, LEVELS), dtype=torch.int64)


_color_metrics = register(
    "color_metrics(Tensor prediction_u8_NHWC, Tensor target_u8_NHWC) -> (Tensor, Tensor)",
    cpu=reference.color_metrics,
    cuda=_launch_color_metrics,
    fake=_empty_sums,
)

# ---- public functions ----


class ColorMetrics(NamedTuple):
    """One value per image, float64 (N,); NaN for images without pixels."""

    ciede2000: Tensor  # mean color difference [Delta E 2000]
    ab_error: Tensor  # mean absolute difference over a* and b* [Lab units]
    mse: Tensor  # mean squared difference over R, G and B [levels^2]
    psnr: Tensor  # [dB], infinite for equal images
    colorfulness: Tensor  # of the prediction, from signed opponents [levels]
    target_colorfulness: Tensor
    colorfulness_ddcolor: Tensor  # of the prediction, from absolute opponents [levels]
    target_colorfulness_ddcolor: Tensor


def color_metrics(prediction_u8_NHWC: Tensor, target_u8_NHWC: Tensor, impl: Impl = "auto") -> ColorMetrics:
    """Compare sRGB images, uint8 (N,H,W,3), any strides, with their originals of the same shape.

    CIEDE2000: Sharma, Wu and Dalal (2005), weights 1, on scikit-image's Lab; in float64, on a GPU in float32. All sums
    except those of CIEDE2000 and ab_error are exact. Colorfulness: Hasler and Suesstrunk (2003), standard deviation
    + 0.3 x mean of R - G and (R + G) / 2 - B over the pixels; DDColor's formula (arXiv:2212.11613) takes absolute
    values of both. Raises ValueError for other shapes, types or impl. Not differentiable.
    """
    check_rgb_u8(prediction_u8_NHWC, target_u8_NHWC)
    function = choose(
        impl, prediction_u8_NHWC, op=_color_metrics, triton=_launch_color_metrics, reference=reference.color_metrics
    )
    colors, levels = function(prediction_u8_NHWC, target_u8_NHWC)
    pixels = prediction_u8_NHWC.shape[1] * prediction_u8_NHWC.shape[2]
    ciede2000, ab_error = (colors / pixels).unbind(1)
    mse, *opponents = (levels.double() / pixels).unbind(1)
    return ColorMetrics(
        ciede2000=ciede2000,
        ab_error=ab_error / 2,
        mse=mse / 3,
        psnr=10 * torch.log10(255**2 / (mse / 3)),
        colorfulness=_colorfulness(*opponents[0:2], *opponents[4:6]),
        target_colorfulness=_colorfulness(*opponents[6:8], *opponents[10:12]),
        colorfulness_ddcolor=_colorfulness(*opponents[2:4], *opponents[4:6]),
        target_colorfulness_ddcolor=_colorfulness(*opponents[8:10], *opponents[10:12]),
    )


def _colorfulness(rg: Tensor, twice_yb: Tensor, rg_squared: Tensor, twice_yb_squared: Tensor) -> Tensor:
    """Colorfulness [levels] from means over the pixels of R - G and R + G - 2 B, and of their squares."""
    variance = (rg_squared - rg**2) + (twice_yb_squared - twice_yb**2) / 4
    return variance.clamp_min(0).sqrt() + 0.3 * (rg**2 + (twice_yb / 2) ** 2).sqrt()
