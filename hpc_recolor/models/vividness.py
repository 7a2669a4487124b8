"""Makes predicted colors more vivid, or paler, within the gamut of sRGB."""

import math

import torch
from torch import Tensor

from hpc_recolor.models.shapes import VIVIDNESS_POWER
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

# Share of the most chroma in the gamut up to which a color is multiplied; what lies above approaches the gamut's limit.
KNEE = 0.8

# The most chroma of an sRGB color is 133.8, blue's [Lab units]; ab are divided by 110.
MOST_CHROMA = 134 / 110
# Linear RGB of X, Y and Z, each over that of white.
RGB_FROM_WHITE = [[factor * white for factor, white in zip(row, WHITE_D65, strict=True)] for row in RGB_FROM_XYZ]
BISECTIONS = 12  # of the limit, to 134 / 2^12 = 0.03 Lab units
TINY = 1e-6


def make_vivid(l_N1HW: Tensor, ab_N2HW: Tensor, vividness: float) -> Tensor:
    """ab (N,2,H,W) with its chroma multiplied by vividness^1.58, at the same L and hue.

    l_N1HW, ab_N2HW: in the ranges of rgb_to_lab; vividness: 0 or more, 0: gray, 1: as it is, 2: three times the chroma.
    Chroma never falls below the smaller of what it was and the product.
    Clamping RGB in its place would shift hue and lightness; soft compression of chroma is what gamut mapping of images
    does (Morovic 2008, Color Gamut Mapping, chapter 10).
    """
    factor = math.pow(vividness, VIVIDNESS_POWER)
    return factor * ab_N2HW if factor <= 1 else amplify(l_N1HW, ab_N2HW, factor)  # paler never leaves the gamut


def amplify(l_N1HW: Tensor, ab_N2HW: Tensor, factor: float | Tensor) -> Tensor:
    """ab (N,2,H,W) with its chroma multiplied by a factor of 1 or more, as `make_vivid` does."""
    chroma = torch.linalg.vector_norm(ab_N2HW, dim=1, keepdim=True)
    direction = ab_N2HW / chroma.clamp_min(TINY)
    limit = _gamut_limit(l_N1HW, direction)
    knee = torch.maximum(chroma, KNEE * limit)
    room, excess = (limit - knee).clamp_min(0), (factor * chroma - knee).clamp_min(0)
    compressed = room * -torch.expm1(-excess / room.clamp_min(TINY))
    vivid: Tensor = direction * (torch.minimum(factor * chroma, knee) + compressed)
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
