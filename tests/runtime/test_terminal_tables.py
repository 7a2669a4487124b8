"""Tables at any width from 20 columns up."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_recolor import checkpoint, doctor, jobs
from hpc_recolor.diagnostics.findings import Finding
from hpc_recolor.evaluation.result_writer import summary_table
from hpc_recolor.launch.overview import Overview
from hpc_recolor.launch.training_progress import TrainingProgress
from hpc_recolor.runtime.terminal_tables import Row, print_lines, print_table

LONG = "many words that explain " * 4


def show_jobs() -> None:
    progress = TrainingProgress(epoch=12.5, epochs=100, images_per_s=1234.5, time_left_s=7500)
    row = Overview(run=Path("runs/quickstart"), state="running", job="123456_12", progress=progress, last_stop=LONG)
    jobs._print_table([row])


def show_checkpoints() -> None:
    cells = ("images-000000012345", "15", "16", "3", "1702.5 MiB", "2026-11-26 22:00", "v0.1.0-12-gabcdef0")
    print_table(checkpoint.HEADINGS, [Row(cells)])


def show_findings() -> None:
    doctor.show([Finding("preparation", "warning", LONG, fix="pip install '.[cuda13]'")])


def show_scores() -> None:
    means = dict.fromkeys(("ciede2000", "ab_error", "psnr", "ssim", "colorfulness", "lpips", "fid"), 12.345)
    print_lines(summary_table({"model": means, "mean_color": means}))


@pytest.mark.parametrize(
    ("show", "words"),
    [
        (show_jobs, ["123456_12", "1234.5", "12.5/100"]),
        (show_checkpoints, ["images-000000012345", "1702.5 MiB", "2026-11-26"]),
        (show_findings, ["preparation", "warning", "explain"]),
        (show_scores, ["colorfulness", "12.3", "mean"]),
    ],
)
@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
def test_words_stay_whole_at_every_width(
    show: Callable[[], None],
    words: list[str],
    width: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    show()
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()]
    assert max(map(len, lines)) <= width
    assert [word for word in words if word not in "\n".join(lines)] == []
    assert sum(len(line.strip()) == 1 for line in lines) <= 1
