"""Makes predicted colors more vivid, or paler, within the gamut of sRGB."""

import math

import torch
from torch import Tensor

from hpc_recolor.models.shapes import PALENESS_POWER
from recolor_kernels.constants import (
    A_FACTOR,
    AB_SCALE,
    B_FACTOR,
    L_SCALE,
    LAB_F_KNEE,
    LAB_OFFSET,
    LAB_SLOPE,
    LIGHTNESS_FACTOR,
    LIGHTNESS_OFFSET,
    RGB_FROM_XYZ,
    WHITE_D65,
)

# Share of the mean chroma of an image that stays as it is: what has more becomes more vivid, what has less paler.
PIVOT = 0.42
CONTRAST = 0.6  # 0: all colors alike, which tints what has none; 1: uneven skies become blotched
MOST_TIMES = 3.0  # what a vividness of 2 multiplies chroma by at most: a small spot of color is not to shine
LEAST_CHROMA = 1e-3  # of the mean, in units of 110; of an image that is gray

# Share of the most chroma in the gamut up to which a color is multiplied; what lies above approaches the gamut's limit.
KNEE = 0.95

# The most chroma of an sRGB color is 133.8, blue's [Lab units]; ab are divided by 110.
MOST_CHROMA = 134 / 110
# Linear RGB of X, Y and Z, each over that of white.
RGB_FROM_WHITE = [[factor * white for factor, white in zip(row, WHITE_D65, strict=True)] for row in RGB_FROM_XYZ]
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
    return sharpen(l_N1HW, ab_N2HW, math.log2(vividness))


def sharpen(l_N1HW: Tensor, ab_N2HW: Tensor, power: float | Tensor) -> Tensor:
    """ab (N,2,H,W) as `make_vivid` makes it at a vividness of 2^power; power: 0 or more."""
    chroma = torch.linalg.vector_norm(ab_N2HW, dim=1, keepdim=True)
    direction = ab_N2HW / chroma.clamp_min(TINY)
    limit = _gamut_limit(l_N1HW, direction)
    pivot = PIVOT * chroma.mean((1, 2, 3), keepdim=True).clamp_min(LEAST_CHROMA)
    wanted = chroma * ((chroma / pivot) ** CONTRAST).clamp_max(MOST_TIMES) ** power
    knee = torch.maximum(chroma, KNEE * limit)
    room, excess = (limit - knee).clamp_min(0), (wanted - knee).clamp_min(0)
    compressed = room * -torch.expm1(-excess / room.clamp_min(TINY))
    vivid: Tensor = direction * (torch.minimum(wanted, knee) + compressed)
    return vivid


def _gamut_limit(l_N1HW: Tensor, direction_N2HW: Tensor) -> Tensor:
    """The most chroma that sRGB has at this L and hue, (N,1,H,W), in units of 110; by bisection.

    f of X, Y and Z is linear in chroma, and a color is in the gamut if its linear RGB is.
    """
    fy = ((l_N1HW + 1) * L_SCALE + LIGHTNESS_OFFSET) / LIGHTNESS_FACTOR
    a, b = (direction_N2HW * AB_SCALE).chunk(2, dim=1)
    slope = torch.cat((a / A_FACTOR, torch.zeros_like(a), -b / B_FACTOR), dim=1)
    matrix = torch.tensor(RGB_FROM_WHITE, dtype=l_N1HW.dtype, device=l_N1HW.device).view(1, 3, 3, 1, 1)
    inside = torch.zeros_like(l_N1HW)
    outside = torch.full_like(l_N1HW, MOST_CHROMA)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        f = (fy + middle * slope).clamp_min(0)  # as lab_to_rgb does with Z's; where X's is below, R is too
        xyz = torch.where(f > LAB_F_KNEE, f**3, (f - LAB_OFFSET) / LAB_SLOPE)
        linear = (matrix * xyz.unsqueeze(1)).sum(dim=2)
        fits = (linear - 0.5).abs().amax(1, keepdim=True) < 0.5
        inside, outside = torch.where(fits, middle, inside), torch.where(fits, outside, middle)
    return inside
