"""Distance of images in the features of a frozen network."""

import pytest
import torch

from hpc_recolor.config import ColorName, ModelConfig
from hpc_recolor.models.perceptual_loss import PerceptualLoss


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_nearer_colors_have_a_smaller_distance_and_equal_ones_none(color: ColorName) -> None:
    loss = PerceptualLoss(ModelConfig(color=color)).train()
    generator = torch.Generator().manual_seed(0)
    condition = torch.rand(2, 1, 64, 64, generator=generator) * 2 - 1
    target = torch.rand(2, 3 if color == "rgb" else 2, 64, 64, generator=generator) - 0.5
    prediction = (target + 0.1 * torch.randn(target.shape, generator=generator)).requires_grad_()
    distances = [float(loss(condition, other.detach(), target)) for other in (target, prediction, -target)]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]
    (gradient,) = torch.autograd.grad(loss(condition, prediction, target), prediction)
    assert gradient.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.network.modules())
