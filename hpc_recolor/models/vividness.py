"""Makes predicted colors more vivid, or paler, within the gamut of sRGB."""

import math

import torch
from torch import Tensor

from hpc_recolor.models.shapes import VIVIDNESS_POWER
from recolor_kernels import lab_to_rgb

# Share of the most chroma in the gamut up to which a color is multiplied; what lies above approaches the gamut's limit.
KNEE = 0.8

# The most chroma of an sRGB color is 133.8, blue's [Lab units]; ab are divided by 110.
MOST_CHROMA = 134 / 110
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
    if factor <= 1:  # never leaves the gamut
        return factor * ab_N2HW
    chroma = torch.linalg.vector_norm(ab_N2HW, dim=1, keepdim=True)
    direction = ab_N2HW / chroma.clamp_min(TINY)
    limit = _gamut_limit(l_N1HW, direction)
    knee = torch.maximum(chroma, KNEE * limit)
    room, excess = (limit - knee).clamp_min(0), (factor * chroma - knee).clamp_min(0)
    compressed = room * -torch.expm1(-excess / room.clamp_min(TINY))
    vivid: Tensor = direction * (torch.minimum(factor * chroma, knee) + compressed)
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
