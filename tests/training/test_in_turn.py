"""Several trainings in one process, as from a notebook."""

from pathlib import Path

import pytest

from tests.support.workers import trainings_in_turn
from tests.training.conftest import Worker


@pytest.mark.parametrize("ranks", [1, 2])
def test_trainings_follow_each_other_in_one_process(on_ranks: Worker, photos: Path, tmp_path: Path, ranks: int) -> None:
    for came_to in on_ranks(ranks, trainings_in_turn, str(photos), str(tmp_path)):
        first, refused, second, over, third = came_to
        assert "no such folder" in refused and "already seen" in over
        assert first == second == third
