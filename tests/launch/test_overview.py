"""States of submitted runs, from SLURM and the ranks' history; and real jobs that are requeued, cancelled, killed and
followed."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hpc_recolor import cli
from hpc_recolor.jobs import app
from hpc_recolor.launch.job_folder import Event, JobFolder, read_history, read_submission, write_submission
from hpc_recolor.launch.job_states import JobState
from hpc_recolor.launch.lifecycle import ENDED_STATES, NO_END_RECORDED, SLURM_ENDS, State
from hpc_recolor.launch.overview import Overview, SchedulerReply, make_overview
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import Mark, Start, TimeAccount, write_starts
from tests.conftest import ROOT
from tests.support.live import slurm, until
from tests.support.submitted_runs import end, refusal, start, submitted

STOPPED = end("stopped by SIGUSR2", 75)
SOON = datetime.now().replace(microsecond=0) + timedelta(days=2)

# A rank as these commands see it: it exits on SIGTERM and SIGUSR2, and requests a requeue after SIGUSR2.
RANK = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from hpc_recolor.launch.job_folder import Event, JobFolder, append_event

folder, job = JobFolder(Path(sys.argv[1])), os.environ["SLURM_JOB_ID"]
restart = os.environ.get("SLURM_RESTART_COUNT", "0")
event = {"job": job, "restart": int(restart), "ranks": 1, "nodes": ("node1",)}

def note(**more):
    append_event(folder, Event(time=datetime.now(UTC).isoformat(timespec="seconds"), **event, **more))

def leave(number, frame):
    name = signal.Signals(number).name
    print("saved after", name, flush=True)
    note(kind="end", exit_code=75, reason=f"stopped by {name}")
    if number == signal.SIGUSR2:
        folder.requeue(job, int(restart)).touch()
    sys.exit(0)

for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, leave)
note(kind="start")
print("training, restart", restart, flush=True)
while True:
    signal.pause()
"""
SCRIPT = """\
#!/bin/bash
trap : TERM
srun --output={folder}/%j_%t_log.out --open-mode=append {rank}
code=$?
[ -e {folder}/cancelled-$SLURM_JOB_ID ] && exit 75
[ -e {folder}/requeue-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}} ] && scontrol requeue $SLURM_JOB_ID && exit 0
exit $code
"""


def described(run: RunFolder, slurm_state: JobState | None, slurm_responded: bool = True) -> Overview:
    return make_overview(
        run,
        read_submission(JobFolder.of(run)),
        SchedulerReply(slurm_responded, {"42": slurm_state} if slurm_state else {}),
    )


@pytest.mark.parametrize(
    ("events", "slurm_state", "state", "last_stop"),
    [
        ([], "PENDING", "waiting", ""),
        ([start(), STOPPED], "PENDING", "waiting", "stopped by SIGUSR2"),
        ([start()], "PENDING", "waiting", NO_END_RECORDED),
        ([start(), STOPPED], "CONFIGURING", "waiting", "stopped by SIGUSR2"),
        ([], "RUNNING", "running", ""),
        ([start()], "RUNNING", "running", ""),
        ([start(), STOPPED], "RUNNING", "ending", "stopped by SIGUSR2"),
        ([start()], "COMPLETING", "ending", ""),
        ([start(), end("finished", 0)], "COMPLETED", "finished", "finished"),
        ([start(), end("finished", 0)], "CANCELLED", "finished", "finished"),
        ([start(), end("stopped by SIGTERM", 75)], "CANCELLED", "cancelled", "stopped by SIGTERM"),
        ([], "CANCELLED", "cancelled", "cancelled"),
        ([start(), STOPPED], "FAILED", "saved", "stopped by SIGUSR2"),
        ([start(), STOPPED], "PREEMPTED", "saved", "stopped by SIGUSR2"),
        ([start(), end("losses are not finite", 3)], "FAILED", "failed", "losses are not finite"),
        ([start()], "FAILED", "failed", "failed with exit code 3; see the logs"),
        *(([start()], name, "failed", SLURM_ENDS[name]) for name in ("NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")),
        ([start()], "SOMETHING_NEW", "failed", "ended by SLURM (SOMETHING_NEW); see the logs"),
        ([start()], "COMPLETED", "failed", NO_END_RECORDED),
    ],
)
def test_state_and_last_stop(
    tmp_path: Path, events: Sequence[Event], slurm_state: str, state: State, last_stop: str
) -> None:
    row = described(
        submitted(tmp_path / "run", *events), JobState("42", slurm_state, time_left_s=9, restarts=0, exit_code=3)
    )
    assert (row.state, row.last_stop) == (state, last_stop)
    assert row.limit_left_s == (None if state in ENDED_STATES else 9)


@pytest.mark.parametrize(
    ("events", "slurm_responded", "state", "last_stop"),
    [
        ([], True, "failed", NO_END_RECORDED),
        ([start()], True, "failed", NO_END_RECORDED),
        ([start(), STOPPED], True, "saved", "stopped by SIGUSR2"),
        ([start(), end("finished", 0)], True, "finished", "finished"),
        ([], False, "waiting", ""),
        ([start()], False, "running", ""),
        ([start(), STOPPED], False, "saved", "stopped by SIGUSR2"),
    ],
)
def test_state_of_a_job_that_slurm_does_not_know(
    tmp_path: Path, events: Sequence[Event], slurm_responded: bool, state: State, last_stop: str
) -> None:
    row = described(submitted(tmp_path / "run", *events), None, slurm_responded)
    assert (row.state, row.last_stop) == (state, last_stop)


def test_a_job_that_runs_again_shows_how_it_stopped_before(tmp_path: Path) -> None:
    again = JobState("42", "RUNNING", restarts=1)
    for number, events in enumerate(([STOPPED], [STOPPED, start(restart=1)])):
        row = described(submitted(tmp_path / str(number), start(), *events), again)
        assert (row.state, row.last_stop, row.restarts) == ("running", "stopped by SIGUSR2", number)
    row = described(submitted(tmp_path / "killed", start(), start(restart=1)), again)
    assert (row.state, row.last_stop) == ("running", NO_END_RECORDED)


@pytest.mark.parametrize("again", [[start(restart=1)], []])
def test_time_since_a_start_that_is_over_is_not_its_training(tmp_path: Path, again: list[Event]) -> None:
    """While the ranks of a job that was queued again have not recorded theirs yet."""
    spent = {"starting": 20.0, "training": 100.0}
    began = datetime.fromisoformat(start().time).timestamp()
    run = submitted(tmp_path / "run", start(), *again)
    mark = Mark(images=10, seconds=spent)
    write_starts(run, [Start(began=began, images=0, activity="training", seconds=spent, marks=(mark,), job="42 0")])
    if not again:
        JobFolder.of(run).ended.write_text(f"42 0 {began + 125}\n")
    first, since = described(run, JobState("42", "RUNNING", restarts=1)).time
    assert first == TimeAccount(training=100, starting=20 if again else 25)
    assert since == TimeAccount(waiting=since.total)


def test_events_from_before_the_last_start_belong_to_an_earlier_start(tmp_path: Path) -> None:
    turns = {"2025-12-31T12:00:00+00:00": "ending", "2026-01-02T12:00:00+00:00": "running"}
    run = submitted(tmp_path / "run", start(), STOPPED)
    for start_time, state in turns.items():
        row = described(run, JobState("42", "RUNNING", start_time=start_time))
        assert (row.state, row.last_stop) == (state, "stopped by SIGUSR2")
    killed = submitted(tmp_path / "killed", start())
    assert [described(killed, JobState("42", "RUNNING", start_time=time)).last_stop for time in turns] == [
        "",
        NO_END_RECORDED,
    ]


def test_an_earlier_job_of_the_run_counts_as_history_only(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", start("41"), end("finished", 0, "41"))
    waits = described(run, JobState("42", "PENDING"))
    assert (waits.state, waits.last_stop) == ("waiting", "finished")
    failed = described(run, JobState("42", "BOOT_FAIL"))
    assert (failed.state, failed.last_stop) == ("failed", SLURM_ENDS["BOOT_FAIL"])


def test_a_job_that_the_user_cancelled_is_cancelled_even_if_slurm_has_forgotten_it(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", start(), end("stopped by SIGTERM", 75))
    JobFolder.of(run).cancelled("42").touch()
    assert described(run, None).state == "cancelled"


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("Priority", "other jobs have a higher priority"),
        ("BeginTime", f"requeued, starts at {SOON:%Y-%m-%d %H:%M}"),
        ("JobHeldUser", "held by its user; scontrol release 42"),
        ("ReqNodeNotAvail, UnavailableNodes:node1", "nodes are down, drained or reserved"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit"),
    ],
)
def test_a_waiting_job_shows_the_reason(tmp_path: Path, reason: str, why: str) -> None:
    run = submitted(tmp_path / "run", start(), STOPPED)
    assert described(run, JobState("42", "PENDING", reason=reason, start_time=SOON.isoformat())).why == why


class Job:
    """A run of one rank that only pretends to train, as a real SLURM job."""

    def __init__(self, folder: Path, *options: str, rank: str = RANK) -> None:
        self.run = submitted(folder, ranks=1)
        self.home = JobFolder.of(self.run)
        command = shlex.join([sys.executable, "-c", rank, str(self.home.path)])
        script = folder / "script.sh"
        script.write_text(SCRIPT.format(folder=self.home.path, rank=command))
        output = (f"--output={self.home.path}/%j_0_log.out", "--open-mode=append")
        self.job = slurm("sbatch", "--parsable", "--requeue", "--time=5", "--ntasks=1", *output, *options, str(script))
        write_submission(self.home, read_submission(self.home).model_copy(update={"job": self.job}))

    def until_training(self, restart: int = 0) -> None:
        until(lambda: [event.restart for event in read_history(self.home) if event.kind == "start"][-1:] == [restart])
        until(lambda: f"restart {restart}" in self.home.log(self.job, 0).read_text())


@pytest.fixture
def submit(cluster: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Job]:
    def make(name: str, *options: str, **more: str) -> Job:
        job = Job(tmp_path / name, *options, **more)
        request.addfinalizer(lambda: slurm("scancel", job.job))
        return job

    return make


def row_of(job: Job, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(app, ["status", str(job.run.path), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_a_requeued_job_starts_at_once_is_still_followed_and_cancelled(
    submit: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    job = submit("run")
    run = str(job.run.path)
    follower = [sys.executable, "-m", "hpc_recolor.jobs", "logs", run, "--follow"]
    with subprocess.Popen(follower, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        job.until_training()
        row = row_of(job, capsys)
        assert (row["state"], row["nodes"][:4]) == ("running", "node")
        assert 0 < row["limit_left_s"] <= 300
        assert "cancel it first" in refusal(capsys, "restart", run)

        slurm("scancel", "--signal=USR2", f"{job.job}.0")
        until(lambda: row_of(job, capsys)["reason"] == "BeginTime")
        row = row_of(job, capsys)
        assert (row["reason"], row["last_stop"]) == ("BeginTime", "stopped by SIGUSR2")
        assert row["why"].startswith("requeued, starts at ")
        assert cli.run(app, ["restart", run]) == 0
        assert f"job      {job.job}\n" in capsys.readouterr().out
        job.until_training(restart=1)
        row = row_of(job, capsys)
        assert (row["state"], row["restarts"], row["last_stop"]) == ("running", 1, "stopped by SIGUSR2")

        assert cli.run(app, ["cancel", run]) == 0
        out, err = process.communicate(timeout=120)
    assert [line for line in out.splitlines() if "training" in line or "saved" in line] == [
        "rank 0 | training, restart 0",
        "rank 0 | saved after SIGUSR2",
        "rank 0 | training, restart 1",
        "rank 0 | saved after SIGTERM",
    ]
    assert err == f"job {job.job}: cancelled | stopped by SIGTERM\n"
    assert job.home.cancelled(job.job).exists()
    assert row_of(job, capsys)["state"] == "cancelled"
    assert "has already ended" in refusal(capsys, "cancel", run)


def test_jobs_that_wait_or_fail_are_distinguished(
    submit: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    dies = submit("dies", rank="import os; os._exit(3)")
    waits = submit("waits", "--hold")
    assert "scontrol release" in row_of(waits, capsys)["why"]
    assert "is already waiting (held by its user" in refusal(capsys, "restart", waits.run.path)
    assert cli.run(app, ["cancel", str(waits.run.path)]) == 0
    until(lambda: row_of(dies, capsys)["state"] == "failed")
    assert re.fullmatch("failed.*; see the logs", row_of(dies, capsys)["last_stop"])
    assert cli.run(app, ["list", str(waits.run.path.parent)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(Path(row[0]).name, row[2]) for row in rows] == [("dies", "failed"), ("waits", "cancelled")]
