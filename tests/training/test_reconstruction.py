"""The generator's loss against the original colors."""

import pytest
import torch
from torch import Tensor

from hpc_recolor.config import DistanceName
from hpc_recolor.training.reconstruction import reconstruction_loss


def colors(seed: int, chroma: float) -> Tensor:
    """Random ab (1,2,100,100)."""
    return chroma * (2 * torch.rand(1, 2, 100, 100, generator=torch.Generator().manual_seed(seed)) - 1)


def test_the_gradient_of_ciede2000_is_finite_at_gray_and_at_equal_colors() -> None:
    target = torch.cat((torch.zeros(1, 2, 4, 4), colors(0, 1.0)[..., :4, :4]))
    prediction = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reconstruction_loss(prediction, target, "ciede2000"), prediction)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["l1", "huber", "ciede2000"])
def test_gradient_descent_on_it_finds_the_target(name: DistanceName) -> None:
    target = colors(0, 0.8)[..., :8, :8]
    prediction = torch.zeros_like(target).requires_grad_()
    optimizer = torch.optim.Adam([prediction], lr=0.02)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 200)
        (prediction.grad,) = torch.autograd.grad(reconstruction_loss(prediction, target, name), prediction)
        optimizer.step()
    torch.testing.assert_close(prediction.detach(), target, atol=0.01, rtol=0)
