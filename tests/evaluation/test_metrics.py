"""Scores against scikit-image, and what a perfect and a gray colorizer get."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor, nn

from hpc_recolor.color_space import gray_copy, make_pair
from hpc_recolor.config import ColorName
from hpc_recolor.distributed import World
from hpc_recolor.evaluation.metrics import score
from recolor_kernels import color_metrics
from tests import tolerances

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def pictures() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8))


class Memory(nn.Module):
    """A perfect colorizer: gives back the targets in the order it is asked."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.targets, self.given = targets, 0

    def forward(self, condition: Tensor) -> Tensor:
        self.given += len(condition)
        return self.targets[self.given - len(condition) : self.given]


def test_ab_error_equals_scikit_image(pictures: Tensor) -> None:
    one, other = pictures[:10], pictures[10:]
    expected = np.abs(rgb2lab(one.numpy())[..., 1:] - rgb2lab(other.numpy())[..., 1:]).mean((1, 2, 3))
    np.testing.assert_allclose(color_metrics(one, other).ab_error.numpy(), expected, rtol=tolerances.AB_ERROR_RELATIVE)


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_a_perfect_colorizer_has_no_error(pictures: Tensor, color: ColorName) -> None:
    scores = score(Memory(make_pair(pictures, color)[1]), pictures, color, ALONE)
    assert scores
    assert scores.ab_error == scores.ciede2000 == scores.l1 == 0
    assert scores.colorfulness == scores.original_colorfulness > 10
    assert scores.photographs == 20
    assert scores.gray_ab_error > 10


def test_a_colorizer_without_color_scores_as_the_gray_copy(pictures: Tensor) -> None:
    scores = score(Memory(torch.zeros(20, 2, 8, 8)), pictures, "lab", ALONE)
    assert scores
    assert scores.ab_error == scores.gray_ab_error
    assert scores.ciede2000 == scores.gray_ciede2000
    assert scores.colorfulness < 1


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_the_gray_copy_has_equal_channels(pictures: Tensor, color: ColorName) -> None:
    gray = gray_copy(make_pair(pictures, color)[0], color).int()
    assert (gray.amax(-1) - gray.amin(-1)).max() <= 1


def test_a_measurement_that_is_to_stop_gives_nothing(pictures: Tensor) -> None:
    answers = iter([False, True])
    assert score(Memory(torch.zeros(20, 2, 8, 8)), pictures, "lab", ALONE, lambda: next(answers)) is None
