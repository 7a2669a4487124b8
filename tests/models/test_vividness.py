"""Vividness: more chroma at the same hue and lightness, within the gamut."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpc_recolor.models.shapes import VIVIDNESS_POWER
from hpc_recolor.models.vividness import make_vivid
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
@given(st.floats(0, 9), st.floats(0, 1))
def test_chroma_grows_with_vividness_and_at_most_by_the_factor(vividness: float, more: float) -> None:
    less, greater = chroma(make_vivid(L, AB, vividness)), chroma(make_vivid(L, AB, vividness + more))
    own = chroma(AB)
    assert (greater - less).min() >= -tolerances.KERNEL_FLOAT32
    assert (less - vividness**VIVIDNESS_POWER * own).max() / max(
        1, vividness**VIVIDNESS_POWER
    ) <= tolerances.KERNEL_FLOAT32
    assert (less - min(vividness, 1) ** VIVIDNESS_POWER * own).min() >= -tolerances.KERNEL_FLOAT32


def test_a_vividness_of_two_triples_the_chroma_of_pale_colors() -> None:
    pale = 0.05 * AB
    far_from_the_limits = (L.abs() < 0.5)[:, 0]
    factor = chroma(make_vivid(L, pale, 2))[far_from_the_limits] / chroma(pale)[far_from_the_limits]
    assert (factor - 3).abs().max() <= tolerances.KERNEL_FLOAT32 * 100
