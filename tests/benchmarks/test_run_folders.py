"""`benchmarks.run_folders` makes run folders that `jobs list` shows, and times what reads them."""

import re
from pathlib import Path

import pytest

from benchmarks.run_folders import make_run, run_folders
from hpc_recolor.launch.overview import inspect, runs_in


def test_its_run_folders_are_those_of_submitted_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "one", rows=3, starts=2)
    (row,), failure = inspect(runs_in(tmp_path))
    assert failure is None
    assert (row.state, row.restarts, row.progress.epoch) == ("saved", 1, 0.3)
    assert row.checkpoint and row.checkpoint.name == "images-000000002000"
    assert len(row.time) == 2


def test_it_prints_the_time_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    run_folders(runs=2, rows=3, starts=2, rounds=1)
    _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| jobs list ")
    assert all(re.fullmatch(r"\| .+ \| +\d+\.\d\d \| +\d+\.\d{3} \|", row) for row in rows)
