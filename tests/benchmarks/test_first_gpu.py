"""The first measurements on a GPU, rehearsed on a CPU down to the last row."""

import json
from pathlib import Path

import pytest

from benchmarks.first_gpu import PARTS, REHEARSAL, main, run_part, shapes_of_convolutions
from hpc_recolor.runtime.distributed import World

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("default")  # torch's compiler inspects deprecated attributes
@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_adds_its_rows_to_the_file(part: str, tmp_path: Path, world: World) -> None:
    out = tmp_path / "rows.jsonl"
    run_part(part, REHEARSAL, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["part"] == part
        assert row["machine"]["versions"]["torch"]
        assert len(row) > 2


def test_every_convolution_of_both_networks_is_measured_once() -> None:
    assert len(shapes_of_convolutions(REHEARSAL, 2)) == 15


def test_the_captured_step_changes_the_weights_as_the_eager_one_does(tmp_path: Path, world: World) -> None:
    out = tmp_path / "rows.jsonl"
    run_part("graph", REHEARSAL, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["largest_difference_of_a_weight"] for row in rows if "images_per_s" not in row} == {0.0}


def test_limits_of_all_parts_together_stay_near_nine_minutes() -> None:
    assert sum(limit_s for _, _, limit_s, _ in PARTS.values()) <= 9 * 60


def test_a_rehearsal_of_one_part_ends_with_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--without_gpu", "--only", "snapshot", "--out", str(tmp_path / "rows.jsonl")]) == 0
    assert "ok  snapshot" in capsys.readouterr().out
