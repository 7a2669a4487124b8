"""Enlarges color along the edges of a photograph's own lightness."""

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 1  # of the window that color is a linear function of lightness in [pixels of the small image]

# Variance of L below which a window counts as flat, and keeps its mean color: (1.5 L* / 50)^2.
FLAT = 1e-3


class GuidedUpsampling:
    """Fast guided filter (He and Sun 2015, arXiv:1505.00996): ab is locally a linear function of L.

    The function is fitted where both are small, and applied to the L of the full size, so that colors end at edges
    instead of bleeding over them. l_N1hw, ab_N2hw: in the ranges of rgb_to_lab.
    """

    def __init__(self, l_N1hw: Tensor, ab_N2hw: Tensor) -> None:
        mean_l, mean_ab = _box(l_N1hw), _box(ab_N2hw)
        variance = _box(l_N1hw.square()) - mean_l.square()
        slope = (_box(l_N1hw * ab_N2hw) - mean_l * mean_ab) / (variance + FLAT)
        self._slope_and_offset = _box(torch.cat((slope, mean_ab - slope * mean_l), dim=1))

    def whole(self, l_N1HW: Tensor) -> Tensor:
        """ab (N,2,H,W) of whole photographs, given their L (N,1,H,W): all of `rows`."""
        enlarged = F.interpolate(self._slope_and_offset, size=l_N1HW.shape[-2:], mode="bilinear")
        slope, offset = enlarged.chunk(2, dim=1)
        return slope * l_N1HW + offset

    def rows(self, l_N1HW: Tensor, top: int, height: int) -> Tensor:
        """ab (N,2,H,W) of rows top .. top + H of a photograph that is `height` rows high, given their L (N,1,H,W)."""
        n, _, rows, width = l_N1HW.shape
        y = ((torch.arange(top, top + rows) + 0.5) * 2 / height - 1).view(1, -1, 1).expand(n, rows, width)
        x = ((torch.arange(width) + 0.5) * 2 / width - 1).view(1, 1, -1).expand(n, rows, width)
        enlarged = F.grid_sample(
            self._slope_and_offset, torch.stack((x, y), dim=-1), padding_mode="border", align_corners=False
        )
        slope, offset = enlarged.chunk(2, dim=1)
        return slope * l_N1HW + offset


def _box(values_NCHW: Tensor) -> Tensor:
    """Means over windows; at borders, over what lies inside."""
    return F.avg_pool2d(values_NCHW, 2 * RADIUS + 1, stride=1, padding=RADIUS, count_include_pad=False)
