"""Run folders as `submit` and the ranks leave them, and `jobs` called in this process."""

from pathlib import Path

import pytest

from hpc_recolor import cli
from hpc_recolor.config_file import load_config
from hpc_recolor.jobs import app
from hpc_recolor.launch.job_folder import Event, JobFolder, Submission, append_event, write_submission
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.runtime.exit_codes import BAD_INPUT

EPOCHS = 45


def start(job: str = "42", restart: int = 0, kind: str = "start", **more: object) -> Event:
    fields = {"job": job, "restart": restart, "time": "2026-01-01T00:00:00+00:00", "ranks": 2, "nodes": ("node1",)}
    return Event.model_validate({"kind": kind} | fields | more)


def end(reason: str, exit_code: int, job: str = "42", restart: int = 0) -> Event:
    return start(job, restart, "end", reason=reason, exit_code=exit_code)


def submitted(folder: Path, *events: Event, job: str = "42", cluster: str = "slurm", **more: object) -> RunFolder:
    """A run folder as `submit` and its ranks leave it."""
    run = RunFolder(folder)
    claim(run, load_config(None, {"train": {"epochs": EPOCHS}}))
    home = JobFolder.of(run)
    home.make()
    fields = {
        "cluster": cluster, "job": job, "ranks": 2, "nodes": 1, "logs": home.path, "partition": "main",
        "time": "0-01:00:00", "submitted": "2026-01-01T00:00:00+00:00", "code": "abc", "commit": "123",
        "command": "python -m hpc_recolor.submit",
    }  # fmt: skip
    write_submission(home, Submission.model_validate(fields | more))
    for event in events:
        append_event(home, event)
    return run


def call(*arguments: object) -> int:
    return cli.run(app, [str(argument) for argument in arguments])


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Output of a command that succeeds without warnings."""
    capsys.readouterr()
    assert call(*arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The single error line of a refused command."""
    capsys.readouterr()
    assert call(*arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line
