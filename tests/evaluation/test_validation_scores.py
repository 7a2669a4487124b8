"""Scores against scikit-image, and what a perfect and a gray colorizer get."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor, nn

from hpc_recolor.config import ColorName, LossConfig
from hpc_recolor.evaluation.validation_scores import network_losses, score
from hpc_recolor.models.color_space import gray_copy, make_pair
from hpc_recolor.runtime.distributed import World
from recolor_kernels import color_metrics, discriminator_loss, generator_loss
from tests.support import tolerances

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8))


class Memory(nn.Module):
    """A perfect colorizer: returns the targets in order."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.targets, self.given = targets, 0

    def forward(self, condition: Tensor) -> Tensor:
        self.given += len(condition)
        return self.targets[self.given - len(condition) : self.given]


def undecided(condition: Tensor, image: Tensor) -> Tensor:
    """A discriminator that gives every patch a probability of one half."""
    return condition.new_zeros(len(condition), 1, 2, 2)


def test_ab_error_equals_scikit_image(images: Tensor) -> None:
    one, other = images[:10], images[10:]
    expected = np.abs(rgb2lab(one.numpy())[..., 1:] - rgb2lab(other.numpy())[..., 1:]).mean((1, 2, 3))
    np.testing.assert_allclose(color_metrics(one, other).ab_error.numpy(), expected, rtol=tolerances.AB_ERROR_RELATIVE)


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_a_perfect_colorizer_has_no_error(images: Tensor, color: ColorName) -> None:
    scores = score(Memory(make_pair(images, color)[1]), undecided, images, color, LossConfig(), ALONE)
    assert scores
    assert scores.ab_error == scores.ciede2000 == scores.l1 == 0
    assert scores.colorfulness == scores.original_colorfulness > 10
    assert scores.photographs == 20
    assert scores.adversarial == scores.discriminator == pytest.approx(math.log(2))
    assert scores.gray_ab_error > 10


def test_a_colorizer_without_color_scores_as_the_gray_copy(images: Tensor) -> None:
    scores = score(Memory(torch.zeros(20, 2, 8, 8)), undecided, images, "lab", LossConfig(), ALONE)
    assert scores
    assert scores.ab_error == scores.gray_ab_error
    assert scores.ciede2000 == scores.gray_ciede2000
    assert scores.colorfulness < 1


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_the_gray_copy_has_equal_channels(images: Tensor, color: ColorName) -> None:
    gray = gray_copy(make_pair(images, color)[0], color).int()
    assert (gray.amax(-1) - gray.amin(-1)).max() <= 1


def test_a_measurement_that_is_to_stop_gives_nothing(images: Tensor) -> None:
    answers = iter([False, True])
    assert (
        score(Memory(torch.zeros(20, 2, 8, 8)), undecided, images, "lab", LossConfig(), ALONE, lambda: next(answers))
        is None
    )


@pytest.mark.parametrize("criterion", ["bce", "l1", "mse"])
def test_network_losses_are_those_of_training(criterion: Literal["bce", "l1", "mse"]) -> None:
    torch.manual_seed(0)
    condition, output, target = (torch.rand(5, channels, 8, 8) * 2 - 1 for channels in (1, 2, 2))
    discriminator = nn.Conv2d(3, 1, 4)
    fake, real = (discriminator(torch.cat((condition, image), 1)) for image in (output, target))

    losses = network_losses(
        output, condition, target, lambda *pair: discriminator(torch.cat(pair, 1)), LossConfig(adversarial=criterion)
    )
    assert losses.shape == (5, 3)
    of_generator = generator_loss(output, target, fake, 100.0, criterion)
    expected = torch.stack((of_generator.l1, of_generator.adversarial, discriminator_loss(real, fake, criterion)))
    torch.testing.assert_close(losses.mean(0), expected.double(), rtol=tolerances.LOSS_RELATIVE, atol=0)


def test_without_an_adversarial_loss_only_l1_is_scored(images: Tensor) -> None:
    alone = LossConfig(adversarial="none")
    scores = score(Memory(torch.zeros(20, 2, 8, 8)), undecided, images, "lab", alone, ALONE)
    assert scores
    assert scores.l1 > 0
    assert scores.adversarial == scores.discriminator == 0
