"""Two ranks compute what one rank computes."""

from typing import Any

import numpy as np
import pytest

from tests.conftest import this_rank
from tests.support import tolerances, workers
from tests.training.conftest import Worker


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    return workers.rank_agreement(this_rank())


@pytest.fixture(scope="module")
def two_ranks(on_ranks: Worker) -> list[dict[str, Any]]:
    return on_ranks(2, workers.rank_agreement)


def relative_difference(one: list[list[float]], two: list[list[float]]) -> "np.typing.NDArray[np.float64]":
    expected = np.array(one, np.float64)
    return np.asarray(np.abs(expected - np.array(two)) / np.abs(expected))


def test_losses_agree(one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]) -> None:
    difference = relative_difference(one_rank["float32"], two_ranks[0]["float32"])
    assert difference[:5].max() <= tolerances.RANKS_FLOAT32_5_STEPS
    assert difference.max() <= tolerances.RANKS_FLOAT32_20_STEPS


@pytest.mark.parametrize("generator", workers.GENERATORS)
def test_losses_agree_tightly_in_float64(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]], generator: str
) -> None:
    key = f"float64 {generator}"
    assert relative_difference(one_rank[key], two_ranks[0][key]).max() <= tolerances.RANKS_FLOAT64


def test_batchnorm_over_ranks_equals_batchnorm_over_the_whole_batch(
    one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]
) -> None:
    whole, (first, second) = one_rank["norm"], (rank["norm"] for rank in two_ranks)
    for number, name in enumerate(("output", "input gradient")):
        np.testing.assert_allclose(np.concatenate((first[number], second[number])), whole[number], err_msg=name)
    for number, name in ((2, "weight gradient"), (3, "bias gradient"), (4, "mean"), (5, "variance")):
        np.testing.assert_allclose(first[number], whole[number], err_msg=name)
        np.testing.assert_array_equal(first[number], second[number], err_msg=name)


def test_scores_are_the_same_on_any_number_of_ranks(one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]) -> None:
    assert [rank["scores"] for rank in two_ranks] == [one_rank["scores"]] * 2


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(two_ranks: list[dict[str, Any]], stage: str) -> None:
    for rank in two_ranks:
        assert rank["bad step"][stage] == {"changed": [], "skipped": [1.0, 1.0], "resumes": True}
