"""Progress in logs: lines, and nothing that moves a cursor."""

import io

import pytest
from rich.console import Console

from hpc_recolor.runtime import progress
from hpc_recolor.runtime.progress import show_phase, show_progress


def test_a_log_gets_plain_lines_even_if_colors_are_forced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with show_progress("reading") as update:
        for done in range(1, 4):
            update(done, 3)
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith("reading: ") and "\x1b" not in line for line in lines)


def test_a_phase_is_named_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with show_phase("importing PyTorch"):
        pass
    assert capfd.readouterr().err == ""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "stderr_console", lambda: Console(file=screen, force_terminal=True))
    with show_phase("importing PyTorch", shown=False):
        pass
    assert screen.getvalue() == ""
    with show_phase("importing PyTorch"):
        pass
    assert "importing PyTorch" in screen.getvalue()
