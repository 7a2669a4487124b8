"""Color enlarged along the edges of lightness."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpc_recolor.models.guided_upsampling import GuidedUpsampling
from tests.support import tolerances


def shrunk(values: Tensor, times: int) -> Tensor:
    return F.avg_pool2d(values, times)


def enlarged(ab: Tensor, small_l: Tensor, lightness: Tensor) -> Tensor:
    return GuidedUpsampling(small_l, ab).rows(lightness, 0, lightness.shape[2])


@given(height=st.integers(1, 40), width=st.integers(1, 40), top=st.integers(0, 39))
def test_one_color_stays_one_color_at_any_size(height: int, width: int, top: int) -> None:
    lightness = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    color = torch.tensor([0.3, -0.2]).view(1, 2, 1, 1)
    first = min(top, height - 1)
    found = GuidedUpsampling(torch.linspace(-1, 1, 64).view(1, 1, 8, 8), color.expand(1, 2, 8, 8)).rows(
        lightness[:, :, first:], first, height
    )
    torch.testing.assert_close(found, color.expand_as(found), atol=tolerances.GUIDED, rtol=0)


def test_strips_together_are_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    lightness, ab = torch.rand(1, 1, 50, 30, generator=generator), torch.rand(1, 2, 8, 8, generator=generator)
    upsampling = GuidedUpsampling(torch.rand(1, 1, 8, 8, generator=generator), ab)
    strips = [upsampling.rows(lightness[:, :, top : top + 7], top, 50) for top in range(0, 50, 7)]
    torch.testing.assert_close(torch.cat(strips, 2), upsampling.rows(lightness, 0, 50), atol=tolerances.GUIDED, rtol=0)


def test_color_ends_where_lightness_does() -> None:
    """A bright red disk on a dark green ground, at 8 times the side that its color is known at."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    inside = (((x - 120) ** 2 + (y - 131) ** 2).sqrt() < 70).float().view(1, 1, 256, 256)
    lightness = inside - 0.5
    ab = torch.cat((inside - 0.5, inside * 0.5), dim=1)
    small = shrunk(ab, 8)
    guided = (enlarged(small, shrunk(lightness, 8), lightness) - ab).abs().mean()
    bilinear = (F.interpolate(small, size=(256, 256), mode="bilinear") - ab).abs().mean()
    assert guided < bilinear / 4
