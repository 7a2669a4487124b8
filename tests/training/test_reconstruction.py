"""The generator's loss against the original colors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.config import ReconstructionName
from hpc_recolor.training.reconstruction import chroma_difference, reconstruction_loss
from recolor_kernels import AB_SCALE
from recolor_kernels.reference import ciede2000
from tests.support import tolerances


def colors(seed: int, chroma: float) -> Tensor:
    """Random ab (1,2,100,100)."""
    return chroma * (2 * torch.rand(1, 2, 100, 100, generator=torch.Generator().manual_seed(seed)) - 1)


@pytest.mark.parametrize("chroma", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("distance", [0.02, 0.2, 1.0])
def test_chroma_difference_is_ciede2000_at_equal_lightness(chroma: float, distance: float) -> None:
    one = colors(0, chroma)
    other = one + colors(1, distance)
    lightness = torch.full((1, 100, 100), 50.0, dtype=torch.float64)
    expected = ciede2000(
        (lightness, *(AB_SCALE * one.double()).unbind(1)), (lightness, *(AB_SCALE * other.double()).unbind(1))
    )
    # Mean hue, and CIEDE2000 with it, has no limit at gray and jumps where hues are opposite.
    is_smooth = (torch.minimum(one.norm(dim=1), other.norm(dim=1)) * AB_SCALE > 0.5) & (
        F.cosine_similarity(one, other) > -0.99
    )
    torch.testing.assert_close(
        chroma_difference(one, other)[is_smooth].double(),
        expected[is_smooth],
        atol=tolerances.CHROMA_DIFFERENCE,
        rtol=tolerances.CHROMA_DIFFERENCE_RELATIVE,
    )


def test_its_gradient_is_finite_at_gray_and_at_equal_colors() -> None:
    target = torch.cat((torch.zeros(1, 2, 4, 4), colors(0, 1.0)[..., :4, :4]))
    prediction = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reconstruction_loss(prediction, target, "ciede2000"), prediction)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["l1", "huber", "ciede2000"])
def test_gradient_descent_on_it_finds_the_target(name: ReconstructionName) -> None:
    target = colors(0, 0.8)[..., :8, :8]
    prediction = torch.zeros_like(target).requires_grad_()
    optimizer = torch.optim.Adam([prediction], lr=0.02)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 200)
        (prediction.grad,) = torch.autograd.grad(reconstruction_loss(prediction, target, name), prediction)
        optimizer.step()
    torch.testing.assert_close(prediction.detach(), target, atol=0.01, rtol=0)
