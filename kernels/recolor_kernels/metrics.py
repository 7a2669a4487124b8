"""Metrics of colorized images against the originals, all in one pass over the pixels."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color_difference, color_math, launch, memory, reference
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
    tl.store(colors_ptr, tl.sum(tl.where(inside, color_difference.ciede2000(l1, a1, b1, l2, a2, b2), 0.0)))
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
