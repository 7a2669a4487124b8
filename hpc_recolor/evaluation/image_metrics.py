"""Measurements of colored pictures against the originals, picture by picture in float64, and what each means."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.config import ColorName
from recolor_kernels import AB_SCALE, color_metrics, lab_to_rgb_u8, rgb_to_lab

SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
LEVELS = 255.0

# For those who read the numbers elsewhere.
FORMULAS = {
    "mae": "mean absolute difference over R, G and B of 8-bit sRGB [levels, 0 to 255]",
    "psnr": "10 log10(255^2 / mean squared difference over R, G and B) of each picture, then the mean [dB]; null where "
    "a picture equals its original",
    "ssim": "as torchmetrics in float64: of R, G and B each, then their mean; Gaussian window of 11 x 11 pixels with "
    "sigma 1.5, population covariance (divided by n), data range 255, k1 0.01, k2 0.03; borders are mirrored by 5 "
    "pixels without repeating the edge, and every pixel counts (scikit-image with gaussian_weights and "
    "use_sample_covariance=False gives the same of pictures padded so, whose border it leaves out again)",
    "ciede2000": "Delta E 2000 (Sharma, Wu and Dalal 2005), weights 1, of sRGB in scikit-image's CIE L*a*b* (D65, "
    "2 degrees), mean over the pixels",
    "ab_error": "mean absolute difference over the pixels' a* and b* [Lab units]",
    "colorfulness": "Hasler and Suesstrunk 2003: with rg = R - G and yb = (R + G) / 2 - B, "
    "sqrt(var rg + var yb) + 0.3 sqrt((mean rg)^2 + (mean yb)^2) [levels]",
    "colorfulness_difference": "mean colorfulness of the row minus that of the originals",
    "colorfulness_ddcolor": "DDColor (arXiv:2212.11613): as colorfulness, with |R - G| and |(R + G) / 2 - B|",
    "colorfulness_ddcolor_difference": "mean colorfulness_ddcolor of the row minus that of the originals",
    "l1": "the generator's L1 in the network's space, mean over pictures",
    "adversarial": "the generator's adversarial loss, discriminator in eval mode, mean over pictures",
    "discriminator": "half its loss on originals and half on generated pictures, in eval mode, mean over pictures",
    "means": "of each picture first, then over the pictures in order, in float64",
    "model_own_l": "a* and b* of the model's picture with L* of the photograph",
    "gray": "what the network was given, as a picture: Rec. 601 luma in RGB runs, L* in Lab runs",
    "mean_color": "one a* and b* for all pictures, the mean over the measured originals, with L* of each: a constant "
    "that knows the test set, and so a little stronger than one that could be learned",
}
LPIPS_FORMULA = "torchmetrics LPIPS 0.1, AlexNet, of pictures in [-1, 1] at their own size, mean over pictures"
FID_FORMULA = (
    "torchmetrics FID, 2048 features of Inception-v3 on pictures resized to 299 x 299, between these pictures and "
    "their originals; an estimate that comes out too large with few pictures, and depends on how many there are"
)

ROUND_TRIPS: dict[ColorName, str] = {
    "rgb": "8-bit sRGB v goes in and out as v / 127.5 - 1, and its Rec. 601 luma is the condition; what the network "
    "makes is rounded to 8 bits and clamped.",
    "lab": "8-bit sRGB goes to CIE L*a*b* (D65, scikit-image's constants) as L* / 50 - 1 and a*, b* / 110; back it is "
    "clamped to the gamut of sRGB and rounded to 8 bits.",
}


def measure(pictures_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> dict[str, Tensor]:
    """Each picture's measurements by name, float64 (N,). Neither the batch nor the threads change a bit of color's.

    Both: uint8 (N,H,W,3), sides of 6 or more. psnr is infinite for equal pictures.
    """
    color = color_metrics(pictures_u8_NHWC, originals_u8_NHWC, impl="reference")  # float64 on GPUs too
    difference = (pictures_u8_NHWC.int() - originals_u8_NHWC.int()).abs()
    return {
        "mae": difference.sum((1, 2, 3)).double() / difference[0].numel(),
        "psnr": color.psnr,
        "ssim": structural_similarity(pictures_u8_NHWC, originals_u8_NHWC),
        "ciede2000": color.ciede2000,
        "ab_error": color.ab_error,
        "colorfulness": color.colorfulness,
        "colorfulness_ddcolor": color.colorfulness_ddcolor,
    }


def structural_similarity(pictures_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of each picture, float64 (N,), as FORMULAS says.

    torchmetrics' own takes 40 times as long in float64, and in float32 it is up to 2e-4 off where pictures are flat.
    """
    one, other = (rgb.permute(0, 3, 1, 2).double() for rgb in (pictures_u8_NHWC, originals_u8_NHWC))
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
    """The weighted sum of as many neighbors along a dimension, wherever there are all of them."""
    size = values.shape[dimension] - len(weights) + 1
    total = values.narrow(dimension, 0, size) * weights[0]
    for place, weight in enumerate(weights[1:], 1):
        total.add_(values.narrow(dimension, place, size), alpha=weight)
    return total


def colorfulness(rgb_u8_NHWC: Tensor) -> dict[str, Tensor]:
    """Both measures of it for each picture, float64 (N,)."""
    color = color_metrics(rgb_u8_NHWC, rgb_u8_NHWC, impl="reference")
    return {"colorfulness": color.colorfulness, "colorfulness_ddcolor": color.colorfulness_ddcolor}


def mean_ab(rgb_u8_NHWC: Tensor) -> Tensor:
    """Each picture's mean a* and b*, float64 (N,2) [Lab units]."""
    _, ab_N2HW = rgb_to_lab(rgb_u8_NHWC, torch.float64, impl="reference")
    return ab_N2HW.mean(3).mean(2) * AB_SCALE


def with_one_color(rgb_u8_NHWC: Tensor, a: float, b: float) -> Tensor:
    """Pictures with their own L* and the same a*, b* [Lab units] in every pixel, uint8 (N,H,W,3)."""
    lightness_N1HW, ab_N2HW = rgb_to_lab(rgb_u8_NHWC)
    color = ab_N2HW.new_tensor((a, b)).div(AB_SCALE).view(1, 2, 1, 1).expand_as(ab_N2HW)
    return lab_to_rgb_u8(lightness_N1HW, color)


def with_lightness_of(originals_u8_NHWC: Tensor, pictures_u8_NHWC: Tensor) -> Tensor:
    """The pictures' a*, b* with L* of the originals, uint8 (N,H,W,3)."""
    return lab_to_rgb_u8(rgb_to_lab(originals_u8_NHWC)[0], rgb_to_lab(pictures_u8_NHWC)[1])
