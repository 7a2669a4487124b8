"""Vividness: more contrast of chroma at the same hue and lightness, within the gamut."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpc_recolor.models.shapes import PALENESS_POWER
from hpc_recolor.models.vividness import MOST_TIMES, PIVOT, make_vivid
from recolor_kernels import lab_to_rgb, rgb_to_lab
from tests.support import tolerances

COLORS = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
L, AB = rgb_to_lab(COLORS)


def chroma(ab: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(ab, dim=1)
    return length


def test_one_keeps_every_color_and_zero_makes_gray() -> None:
    assert torch.equal(make_vivid(L, AB, 1), AB)
    assert torch.equal(make_vivid(L, AB, 0), torch.zeros_like(AB))


@settings(max_examples=20)
@given(st.floats(1, 10))
def test_a_color_of_the_gamut_stays_in_it_and_keeps_its_hue(vividness: float) -> None:
    vivid = make_vivid(L, AB, vividness)
    again = rgb_to_lab(((lab_to_rgb(L, vivid) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    assert (again[0] - L).abs().max() * 50 <= tolerances.VIVID_LIGHTNESS
    across = AB[:, 0] * vivid[:, 1] - AB[:, 1] * vivid[:, 0]
    assert across.abs().max() <= tolerances.KERNEL_FLOAT32


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_below_one_all_colors_are_paler_alike(vividness: float) -> None:
    paler = vividness**PALENESS_POWER * AB
    assert (make_vivid(L, AB, vividness) - paler).abs().max() <= tolerances.KERNEL_FLOAT32


@settings(max_examples=20)
@given(st.floats(1, 9), st.floats(0, 1))
def test_what_has_more_chroma_than_the_pivot_gains_and_what_has_less_loses(vividness: float, more: float) -> None:
    growth = chroma(make_vivid(L, AB, vividness + more)) - chroma(make_vivid(L, AB, vividness))
    above = chroma(AB) > PIVOT * chroma(AB).mean()
    assert growth[above].min() >= -tolerances.KERNEL_FLOAT32
    assert growth[~above].max() <= tolerances.KERNEL_FLOAT32


def test_a_vividness_of_two_at_most_triples_chroma() -> None:
    """One spot of color in gray, of L* 50."""
    ab = torch.full((1, 2, 8, 8), 0.002)
    ab[..., 3, 3] = 0.1
    spot = chroma(make_vivid(torch.zeros(1, 1, 8, 8), ab, 2))[..., 3, 3]
    assert (spot / chroma(ab)[..., 3, 3] - MOST_TIMES).abs().max() <= tolerances.KERNEL_FLOAT32 * 10


def test_each_image_of_a_batch_has_a_pivot_of_its_own() -> None:
    pale, lightness = 0.2 * AB, L.repeat(2, 1, 1, 1)
    both = make_vivid(lightness, torch.cat((AB, pale)), 1.5)
    alone = torch.cat((make_vivid(L, AB, 1.5), make_vivid(L, pale, 1.5)))
    assert (both - alone).abs().max() <= tolerances.KERNEL_FLOAT32


def test_a_gray_image_stays_gray() -> None:
    assert not make_vivid(L, torch.zeros_like(AB), 2).any()
