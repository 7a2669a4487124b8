"""`python -m benchmarks.run_folders`: what commands take that look at a folder of many runs, in processor time.

The run folders are made for it: each with a config, metrics, a record of its time, the history of a job that was
queued again and again, and two checkpoints. SLURM, which gives one answer for all jobs, is not asked.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import to_yaml
from hpc_recolor.jobs import list_
from hpc_recolor.launch.job_folder import Event, JobFolder, Submission, append_event, read_history, write_submission
from hpc_recolor.launch.overview import runs_in
from hpc_recolor.launch.training_progress import read_progress
from hpc_recolor.run_folder.checkpoints import MANIFEST, committed, folder_name, size_bytes
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.lock import RunLock
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.run_folder.time_account import ACTIVITIES, Mark, Start, read_starts, write_starts

app = cli.command("benchmarks.run_folders")

SUBMITTED = 1_800_000_000.0  # POSIX time [s]
AT = "2027-01-15T08:00:00+00:00"
NO_PROCESS = 2**22 + 1  # above the largest process id of Linux
MARKS = 16
AtLeastOne = Number(gte=1)


@app.default
def run_folders(
    *,
    runs: Annotated[int, Parameter(validator=AtLeastOne, help="Run folders [folders, 1 or more].")] = 2000,
    rows: Annotated[int, Parameter(validator=AtLeastOne, help="Rows of losses in each [rows, 1 or more].")] = 1000,
    starts: Annotated[int, Parameter(validator=AtLeastOne, help="Starts of each run [starts, 1 or more].")] = 10,
    rounds: Annotated[int, Parameter(validator=AtLeastOne, help="Of which the fastest counts [1 or more].")] = 3,
) -> None:
    """Print the processor time of `jobs list` over many run folders, and of the parts of it that read them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = sum(make_run(folder / f"run-{number:05d}", rows, starts) for number in range(runs))
        print(f"{runs} run folders of {size / runs / 1000:.0f} kB, {rows} rows of losses and {starts} starts each")
        print(f"| {'processor time of':<44} | {'s':>7} | {'ms a run':>8} |\n| --- | --- | --- |")
        for name, way in ways(folder).items():
            taken_s = min(processor_s(way) for _ in range(rounds))
            print(f"| {name:<44} | {taken_s:7.2f} | {1000 * taken_s / runs:8.3f} |")


def ways(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    runs = runs_in(folder)
    jobs = [JobFolder.of(run) for run in runs]
    return {
        "jobs list": lambda: _quietly(lambda: list_(folder)),
        "  finding the submitted runs": lambda: runs_in(folder),
        "  config and last row of losses": lambda: [read_progress(run) for run in runs],
        "  job history": lambda: [read_history(job) for job in jobs],
        "  record of time": lambda: [read_starts(run) for run in runs],
        "  names of checkpoints": lambda: [committed(run) for run in runs],
        "checkpoint list of each": lambda: [size_bytes(path) for run in runs for path in committed(run)],
        "taking and leaving the lock of each": lambda: _lock(runs),
        "all metrics of each": lambda: [read_metrics(run.metrics) for run in runs],
    }


def make_run(path: Path, rows: int, starts: int) -> int:
    """A run folder as a job leaves it that was stopped and queued again. Returns its size [bytes]."""
    run, job = RunFolder(path), JobFolder.of(RunFolder(path))
    job.make()
    run.config.write_text(to_yaml(Config()))
    run.metrics.write_text("".join(json.dumps(_row(number)) + "\n" for number in range(1, rows + 1)))
    write_starts(run, [_start(number) for number in range(starts)])
    write_submission(job, _submission(job))
    for restart in range(starts):
        append_event(job, _event("start", restart, images=restart * 1000))
        append_event(job, _event("end", restart, exit_code=75, reason="stopped by SIGUSR2 after 1000 images"))
    for images in (1000, 2000):
        checkpoint = run.checkpoints / folder_name(images)
        checkpoint.mkdir(parents=True)
        for name in (MANIFEST, "shard-00000-of-00001.safetensors", "rank-00000-of-00001.safetensors"):
            (checkpoint / name).write_bytes(bytes(1000))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def processor_s(way: Callable[[], Any]) -> float:
    """Processor time of this process for one call [s], which other load changes less than the clock's."""
    started_s = time.process_time()
    way()
    return time.process_time() - started_s


def _quietly(way: Callable[[], Any]) -> None:
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        way()


def _lock(runs: Sequence[RunFolder]) -> None:
    for run in runs:
        with RunLock(run):
            pass


def _row(number: int) -> dict[str, Any]:
    losses = dict.fromkeys(("discriminator", "generator", "l1", "adversarial", "lr", "rank_tflop_per_s"), 0.1234567891)
    place = {"kind": "train", "images_seen": 160 * number, "epoch": number / 10, "images_per_s": 123.456789}
    return place | losses | {"generator_gradient": 0.1234567891, "discriminator_gradient": 0.1234567891}


def _start(number: int) -> Start:
    seconds = dict.fromkeys(ACTIVITIES, 1234.567891)
    marks = tuple(Mark(images=1000 * number + mark, seconds=seconds) for mark in range(MARKS))
    began = SUBMITTED + 10_000 * number
    return Start(began=began, images=1000 * number, activity="training", seconds=seconds, marks=marks)


def _submission(job: JobFolder) -> Submission:
    return Submission(
        cluster="local",
        job=str(NO_PROCESS),
        ranks=1,
        nodes=1,
        logs=job.path,
        partition=None,
        time=None,
        submitted=AT,
        code="0" * 16,
        commit=None,
        command="python -m hpc_recolor.submit",
    )


def _event(kind: str, restart: int, **more: Any) -> Event:
    nodes: Sequence[str] = ("node1",)
    fields = {"kind": kind, "job": str(NO_PROCESS), "restart": restart, "time": AT, "ranks": 1, "nodes": nodes}
    return Event.model_validate(fields | more)


if __name__ == "__main__":
    sys.exit(cli.run(app))
