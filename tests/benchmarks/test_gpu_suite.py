"""How the GPU suite reports its parts; the parts themselves need a GPU."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_suite import SUMMARY_LINES, Outcome, Part, main, parts, run, summary

WELL = ("timeit", "-n1", "-r1", "print('first'); print('last')")
FAILING = ("timeit", "-n1", "-r1", "raise ValueError('reason')")
ENDLESS = ("timeit", "-n1", "-r1", "while True: pass")


def test_a_part_that_ends_well_shows_its_last_lines() -> None:
    outcome = run(Part("well", WELL, needs=("torch",), limit_s=60, shown=2))
    assert (outcome.state, outcome.failed, outcome.lines[0]) == ("ok", False, "last")


def test_a_part_that_fails_shows_why() -> None:
    outcome = run(Part("failing", FAILING, needs=(), limit_s=60, shown=1))
    assert (outcome.state, outcome.failed, outcome.lines) == ("FAILED", True, ("ValueError: reason",))


def test_a_part_that_takes_too_long_is_ended() -> None:
    outcome = run(Part("endless", ENDLESS, needs=(), limit_s=1))
    assert (outcome.state, outcome.failed) == ("TIMED OUT", True)


def test_a_part_that_takes_too_long_is_ended_with_what_it_started() -> None:
    started = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    outcome = run(Part("endless child", ("timeit", "-n1", "-r1", started), needs=(), limit_s=2))
    assert outcome.state == "TIMED OUT"
    assert outcome.elapsed_s < 60


def test_a_part_whose_package_is_missing_is_skipped_by_name() -> None:
    outcome = run(Part("lacking", FAILING, needs=("torch", "no_such_package"), limit_s=60))
    assert (outcome.state, outcome.failed, outcome.lines) == ("skipped", False, ("no package no_such_package",))


def test_a_missing_parent_of_a_package_is_named_too() -> None:
    assert Part("lacking", WELL, needs=("no_such.package",), limit_s=60).missing == ["no_such.package"]


def test_the_summary_never_passes_its_length() -> None:
    outcome = Outcome(Part("long", WELL, (), 1, 60), "ok", 1.0, tuple(map(str, range(60))))
    assert len(summary("GPU", [outcome, outcome])) == SUMMARY_LINES


def test_all_limits_together_stay_under_nine_minutes() -> None:
    assert sum(part.limit_s for part in parts(Path(), Path(), Path(), "cuda")) < 9 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: torch.cuda: no GPU is available; ")
    assert not list(tmp_path.iterdir())
