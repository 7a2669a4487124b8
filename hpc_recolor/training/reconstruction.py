"""The generator's loss against the original colors, beside the adversarial one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.config import ReconstructionName
from recolor_kernels import AB_SCALE, l1_loss

# Quadratic below this difference of values in [-1, 1]: 2.2 Lab units, which eyes hardly see.
HUBER_DELTA = 0.02

# Keeps square roots differentiable where a color is gray or met exactly [Lab units squared].
TINY = 1e-4


def reconstruction_loss(prediction_NCHW: Tensor, target_NCHW: Tensor, name: ReconstructionName) -> Tensor:
    """How far colors are from the original ones: a mean over all pixels, ().

    prediction, target: (N,C,H,W) in [-1, 1]. "l1" and "huber" are means over channels too, the latter in units of
    L1 (Huber 1964, divided by its delta); "ciede2000" is `chroma_difference`, for ab alone.
    """
    match name:
        case "l1":
            return l1_loss(prediction_NCHW, target_NCHW)
        case "huber":
            return F.huber_loss(prediction_NCHW, target_NCHW, delta=HUBER_DELTA) / HUBER_DELTA
        case "ciede2000":
            return chroma_difference(prediction_NCHW, target_NCHW).mean() / AB_SCALE


def chroma_difference(one_N2HW: Tensor, other_N2HW: Tensor) -> Tensor:
    """CIEDE2000 of two colors of the same L*, (N,H,W) [Delta E 2000], differentiable everywhere.

    one, other: ab in the range of rgb_to_lab. Formula: Sharma, Wu and Dalal 2005, doi:10.1002/col.20070. The weights
    that depend on hue, and the stretch of a*, count as constants in the backward pass: their slopes are small, and have
    no limit at gray.
    """
    (a1, b1), (a2, b2) = ((AB_SCALE * ab.float()).unbind(1) for ab in (one_N2HW, other_N2HW))
    with torch.no_grad():
        stretch = 1.5 - 0.5 * _share_of_vivid((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)
    a1, a2 = stretch * a1, stretch * a2
    chroma1, chroma2 = ((a.square() + b.square() + TINY).sqrt() for a, b in ((a1, b1), (a2, b2)))
    chroma = (chroma1 + chroma2) / 2
    with torch.no_grad():
        hue = torch.atan2(b1 / chroma1 + b2 / chroma2, a1 / chroma1 + a2 / chroma2)
        of_hue = (
            1
            - 0.17 * torch.cos(hue - _radians(30))
            + 0.24 * torch.cos(2 * hue)
            + 0.32 * torch.cos(3 * hue + _radians(6))
            - 0.20 * torch.cos(4 * hue - _radians(63))
        )
        blueness = torch.exp(-(((torch.rad2deg(hue) % 360 - 275) / 25) ** 2))
        rotation = -2 * _share_of_vivid(chroma) * torch.sin(_radians(60) * blueness)
        turn = torch.sign(a1 * b2 - b1 * a2)
    by_chroma = (chroma2 - chroma1) / (1 + 0.045 * chroma)
    by_hue_squared = 2 * (chroma1 * chroma2 - a1 * a2 - b1 * b2).clamp_min(0) / (1 + 0.015 * chroma * of_hue).square()
    rotated = rotation * turn * by_chroma * (by_hue_squared + TINY).sqrt()
    return (by_chroma.square() + by_hue_squared + rotated + TINY).sqrt()


def _share_of_vivid(chroma: Tensor) -> Tensor:
    """Near 0 for pale colors, near 1 for vivid ones."""
    power = chroma**7
    return (power / (power + 25.0**7)).sqrt()


def _radians(degrees: float) -> float:
    return degrees * torch.pi / 180
