"""Makes predicted colors more vivid, or paler, within the gamut of sRGB."""

import math

import torch
from torch import Tensor

from hpc_recolor.models.shapes import PALENESS_POWER
from recolor_kernels import lab_to_rgb

# Share of the mean chroma of an image that stays as it is: what has more becomes more vivid, what has less paler.
PIVOT = 0.42
CONTRAST = 0.6  # 0: all colors alike, which tints what has none; 1: uneven skies become blotched
MOST_TIMES = 3.0  # what a vividness of 2 multiplies chroma by at most: a small spot of color is not to shine
LEAST_CHROMA = 1e-3  # of the mean, in units of 110; of an image that is gray

# Share of the most chroma in the gamut up to which a color is multiplied; what lies above approaches the gamut's limit.
KNEE = 0.95

# The most chroma of an sRGB color is 133.8, blue's [Lab units]; ab are divided by 110.
MOST_CHROMA = 134 / 110
BISECTIONS = 12  # of the limit, to 134 / 2^12 = 0.03 Lab units
TINY = 1e-6

# Part of stored evaluations: another wording is another formula.
FORMULA = (
    "At the same L* and hue, chroma c becomes c min((c / (0.42 m))^0.6, 3)^log2(v), m its mean over the image, and "
    "approaches the limit of the gamut from 0.95 of it on; below a vividness v of 1 it is c v^1.58."
)


def make_vivid(l_N1HW: Tensor, ab_N2HW: Tensor, vividness: float) -> Tensor:
    """ab (N,2,H,W), each image by FORMULA: more contrast of chroma, at the same L and hue.

    l_N1HW, ab_N2HW: in the ranges of rgb_to_lab; vividness: 0 or more, 0: gray, 1: as it is, 2: about as colorful as
    photographs are, by the colorizer in the package.
    Multiplying all chroma alike, which tints what has no color, costs more CIEDE2000 at the same colorfulness (figures
    in the card of the colorizer). Clamping RGB would shift hue and lightness; soft compression of chroma is what gamut
    mapping of images does (Morovic 2008, Color Gamut Mapping, chapter 10).
    """
    if vividness <= 1:  # never leaves the gamut
        return math.pow(vividness, PALENESS_POWER) * ab_N2HW
    chroma = torch.linalg.vector_norm(ab_N2HW, dim=1, keepdim=True)
    direction = ab_N2HW / chroma.clamp_min(TINY)
    limit = _gamut_limit(l_N1HW, direction)
    pivot = PIVOT * chroma.mean((1, 2, 3), keepdim=True).clamp_min(LEAST_CHROMA)
    wanted = chroma * ((chroma / pivot) ** CONTRAST).clamp_max(MOST_TIMES) ** math.log2(vividness)
    knee = torch.maximum(chroma, KNEE * limit)
    room, excess = (limit - knee).clamp_min(0), (wanted - knee).clamp_min(0)
    compressed = room * -torch.expm1(-excess / room.clamp_min(TINY))
    vivid: Tensor = direction * (torch.minimum(wanted, knee) + compressed)
    return vivid


def _gamut_limit(l_N1HW: Tensor, direction_N2HW: Tensor) -> Tensor:
    """The most chroma that sRGB has at this L and hue, (N,1,H,W), in units of 110; by bisection."""
    inside = torch.zeros_like(l_N1HW)
    outside = torch.full_like(l_N1HW, MOST_CHROMA)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        # Values outside of the gamut are clamped to 1 or -1.
        fits = lab_to_rgb(l_N1HW, middle * direction_N2HW).abs().amax(1, keepdim=True) < 1
        inside, outside = torch.where(fits, middle, inside), torch.where(fits, outside, middle)
    return inside
