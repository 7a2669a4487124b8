"""A colorizer as one graph of tensors, which other programs run without this package."""

from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_recolor.evaluation.colorizer import LONGEST_ASPECT, Colorizer
from hpc_recolor.models.backbone import pad_statically
from hpc_recolor.models.backbone_unet import BackboneUNet
from hpc_recolor.models.color_space import make_pair, predicted_ab
from hpc_recolor.models.guided_upsampling import GuidedUpsampling
from hpc_recolor.models.shapes import PALENESS_POWER
from hpc_recolor.models.vividness import sharpen
from recolor_kernels import lab_to_rgb_u8, rgb_to_lab


class PortableColorizer(nn.Module):
    """Maps photographs, uint8 (N,H,W,3) in sRGB, and a vividness, float32 (), to colored copies, uint8 (N,H,W,3).

    What `Colorizer` does, with all sizes computed by tensors: torch.export can follow these, whatever the photograph's.
    It holds all pixels at once, in float32. Photographs of one batch have one size.
    """

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.size, self.color = colorizer.size, colorizer.color
        self.generator = deepcopy(colorizer.generator).eval()
        self.multiple = self.generator.multiple
        if isinstance(self.generator, BackboneUNet):
            pad_statically(self.generator)

    def forward(self, rgb_u8_NHWC: Tensor, vividness: Tensor) -> Tensor:
        """See the class."""
        small_l, small_ab = self._predict_lab(rgb_u8_NHWC)
        paler = vividness**PALENESS_POWER * small_ab
        vivid = torch.where(vividness <= 1, paler, sharpen(small_l, small_ab, torch.log2(vividness.clamp_min(1))))
        lightness, _ = rgb_to_lab(rgb_u8_NHWC)
        return lab_to_rgb_u8(lightness, GuidedUpsampling(small_l, vivid).whole(lightness))

    def _predict_lab(self, rgb_u8_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """L (N,1,h,w) and predicted ab (N,2,h,w), in the ranges of rgb_to_lab, at the size that the network sees."""
        sides = torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in rgb_u8_NHWC.shape[1:3]])
        seen = (sides * (self.size / sides.min())).round().clamp(self.size, LONGEST_ASPECT * self.size)
        small = _shrink(rgb_u8_NHWC, *_integers(seen, self.size))
        condition, _ = make_pair(small, self.color)
        output = self._generate(condition, seen)
        lightness = condition if self.color == "lab" else rgb_to_lab(small)[0]
        return lightness, predicted_ab(condition, output, self.color)

    def _generate(self, condition: Tensor, sides: Tensor) -> Tensor:
        """The generator's output (N,C,h,w) for a condition (N,1,h,w) of any sides."""
        padded = (sides / self.multiple).ceil()
        least = -(-self.size // self.multiple)
        height, width = (count * self.multiple for count in _integers(padded, least))
        fitting = _repeat_border(condition, height, width)
        if isinstance(self.generator, BackboneUNet) and self.generator.backbone_scale != 1:
            rows, columns = _integers((padded * self.generator.backbone_scale).round().clamp_min(1), 1)
            output = self.generator(fitting, (rows * self.multiple, columns * self.multiple))
        else:
            output = self.generator(fitting)
        return _repeat_border(output, *condition.shape[-2:])


def _integers(sides: Tensor, least: int) -> tuple[int, int]:
    """Height and width out of a tensor: for torch.export numbers of their own, not formulas of the photograph's sides,
    which it would carry through every layer and take minutes to compare. least: what they are at least."""
    height, width = cast(list[int], sides.long().tolist())
    torch._check(height >= least)
    torch._check(width >= least)
    return height, width


def _shrink(rgb_u8_NHWC: Tensor, height: int, width: int) -> Tensor:
    """Images as Pillow's bilinear resize makes them: first along rows, then along columns, and rounded after each.

    Where a photograph is smooth, networks see the steps that rounding leaves.
    """
    planes = rgb_u8_NHWC.permute(0, 3, 1, 2).float()
    for size in ((planes.shape[2], width), (height, width)):
        planes = (F.interpolate(planes, size=size, mode="bilinear", antialias=True) + 0.5).floor()
    return planes.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _repeat_border(values_NCHW: Tensor, height: int, width: int) -> Tensor:
    """The upper left of these sides; beyond the lower and right borders, the border again."""
    rows, columns = (torch.arange(side) for side in (height, width))
    last_row, last_column = (side - 1 for side in values_NCHW.shape[-2:])
    return values_NCHW.index_select(2, rows.clamp_max(last_row)).index_select(3, columns.clamp_max(last_column))
