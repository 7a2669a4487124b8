"""Metrics of colored images against the originals, image by image in float64. `metric_registry` describes them."""

from collections.abc import Sequence
from math import log10

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.config import ColorName
from hpc_recolor.models.vividness import make_vivid
from recolor_kernels import AB_SCALE, color_metrics, lab_to_rgb_u8, rgb_to_lab

SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
LEVELS = 255.0
# Of an image whose only error is rounding to whole levels (a mean square of 1/12), 58.9 dB. Equal images, as a gray
# photograph and its gray copy, would be infinitely good, and with them the mean of all.
PSNR_OF_ROUNDING = 10 * log10(12 * LEVELS**2)

# Part of stored evaluations: another wording is another protocol.
ROUND_TRIPS: dict[ColorName, str] = {
    "rgb": "8-bit sRGB v goes in and out as v / 127.5 - 1, and its Rec. 601 luma is the condition; what the network "
    "makes is rounded to 8 bits and clamped.",
    "lab": "8-bit sRGB goes to CIE L*a*b* (D65, scikit-image's constants) as L* / 50 - 1 and a*, b* / 110; back it is "
    "clamped to the gamut of sRGB and rounded to 8 bits.",
}


def measure(images_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> dict[str, Tensor]:
    """The metrics of each image by the registry's keys, float64 (N,).

    Both: uint8 (N,H,W,3), sides of 6 pixels or more. psnr is at most PSNR_OF_ROUNDING. The color metrics do not
    depend on batch size or threads, to the last bit.
    """
    color = color_metrics(images_u8_NHWC, originals_u8_NHWC, impl="reference")  # float64 on GPUs too
    difference = (images_u8_NHWC.int() - originals_u8_NHWC.int()).abs()
    return {
        "mae": difference.sum((1, 2, 3)).double() / difference[0].numel(),
        "psnr": color.psnr.clamp(max=PSNR_OF_ROUNDING),
        "ssim": structural_similarity(images_u8_NHWC, originals_u8_NHWC),
        "ciede2000": color.ciede2000,
        "ab_error": color.ab_error,
        "colorfulness": color.colorfulness,
        "colorfulness_ddcolor": color.colorfulness_ddcolor,
    }


def front(originals_u8_NHWC: Tensor, ab_N2HW: Tensor, vividness: Sequence[float]) -> dict[str, dict[str, Tensor]]:
    """CIEDE2000 and colorfulness of each image at each vividness, by `front_key`; float64 (N,) each.

    originals: uint8 (N,H,W,3), whose L* is kept, as `colorize` does. ab: predicted, in the range of rgb_to_lab.
    """
    lightness, _ = rgb_to_lab(originals_u8_NHWC)
    measured = {}
    for setting in vividness:
        images = lab_to_rgb_u8(lightness, make_vivid(lightness, ab_N2HW, setting))
        values = color_metrics(images, originals_u8_NHWC, impl="reference")
        measured[front_key(setting)] = {"ciede2000": values.ciede2000, "colorfulness": values.colorfulness}
    return measured


def front_key(vividness: float) -> str:
    """The name of a vividness among the measured methods."""
    return f"vividness {vividness:g}"


def structural_similarity(images_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of each image, float64 (N,), by the formula in `metric_registry`.

    Both: uint8 (N,H,W,3), sides of 6 pixels or more. torchmetrics' own takes 40 times as long in float64, and in
    float32 it is up to 2e-4 off where images are flat.
    """
    one, other = (rgb.permute(0, 3, 1, 2).double() for rgb in (images_u8_NHWC, originals_u8_NHWC))
    mean_one, mean_other = _blur(one), _blur(other)
    variance = (_blur(one * one) - mean_one**2).clamp_min(0) + (_blur(other * other) - mean_other**2).clamp_min(0)
    covariance = _blur(one * other) - mean_one * mean_other
    c1, c2 = (SSIM_K1 * LEVELS) ** 2, (SSIM_K2 * LEVELS) ** 2
    similarity = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    similarity /= (mean_one**2 + mean_other**2 + c1) * (variance + c2)
    return similarity.mean(3).mean(2).mean(1)


def _blur(values_NCHW: Tensor) -> Tensor:
    """Gaussian means around each pixel, with mirrored borders: along rows, then along columns."""
    reach = SSIM_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    gaussian = torch.exp(-((offsets / SSIM_SIGMA) ** 2) / 2)
    weights = (gaussian / gaussian.sum()).tolist()
    padded = F.pad(values_NCHW, (reach,) * 4, mode="reflect")
    return _weighted(_weighted(padded, weights, 3), weights, 2)


def _weighted(values: Tensor, weights: list[float], dimension: int) -> Tensor:
    """Weighted sums of neighbors along a dimension, at each position that has all of them."""
    size = values.shape[dimension] - len(weights) + 1
    total = values.narrow(dimension, 0, size) * weights[0]
    for place, weight in enumerate(weights[1:], 1):
        total.add_(values.narrow(dimension, place, size), alpha=weight)
    return total


def colorfulness(rgb_u8_NHWC: Tensor) -> dict[str, Tensor]:
    """Both variants of colorfulness of each image, float64 (N,) [levels]."""
    color = color_metrics(rgb_u8_NHWC, rgb_u8_NHWC, impl="reference")
    return {"colorfulness": color.colorfulness, "colorfulness_ddcolor": color.colorfulness_ddcolor}


def mean_ab(rgb_u8_NHWC: Tensor) -> Tensor:
    """The mean a* and b* of each image, float64 (N,2) [Lab units]."""
    _, ab_N2HW = rgb_to_lab(rgb_u8_NHWC, torch.float64, impl="reference")
    return ab_N2HW.mean(3).mean(2) * AB_SCALE


def with_one_color(rgb_u8_NHWC: Tensor, a: float, b: float) -> Tensor:
    """Images with their own L* and the same a*, b* [Lab units] in every pixel, uint8 (N,H,W,3)."""
    lightness_N1HW, ab_N2HW = rgb_to_lab(rgb_u8_NHWC)
    color = ab_N2HW.new_tensor((a, b)).div(AB_SCALE).view(1, 2, 1, 1).expand_as(ab_N2HW)
    return lab_to_rgb_u8(lightness_N1HW, color)


def with_lightness_of(originals_u8_NHWC: Tensor, images_u8_NHWC: Tensor) -> Tensor:
    """a*, b* of the images with L* of the originals, uint8 (N,H,W,3)."""
    return lab_to_rgb_u8(rgb_to_lab(originals_u8_NHWC)[0], rgb_to_lab(images_u8_NHWC)[1])
