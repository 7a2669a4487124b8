"""How submitted runs are doing: what their folders say, and what SLURM says of their jobs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hpc_recolor.config_file import load_config
from hpc_recolor.launch.job_folder import Event, JobFolder, Submission, read_history, read_submission
from hpc_recolor.launch.job_states import JobState, job_states
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import STOPPED

State = Literal["waiting", "running", "ending", "finished", "saved", "cancelled", "failed", "unreadable"]
OVER: tuple[State, ...] = ("finished", "saved", "cancelled", "failed")

# What SLURM calls a job that is not over (squeue(1), JOB STATE CODES); all others are.
WAITS = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "CONFIGURING",
    "SUSPENDED",
    "RESV_DEL_HOLD",
)
RUNS = ("RUNNING", "RESIZING")
ENDS = ("COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED")

REASONS = {
    "None": "just submitted",
    "Priority": "other jobs come before it",
    "Resources": "next, once nodes are free",
    "Dependency": "for another job to end",
    "DependencyNeverSatisfied": "for a job that can never satisfy it; cancel it",
    "JobArrayTaskLimit": "as many runs of its sweep as may are running",
    "JobHeldUser": "held by its user; scontrol release {job}",
    "JobHeldAdmin": "held by an administrator, or by SLURM after failed starts; scontrol release {job}",
    "ReqNodeNotAvail": "nodes are down, drained or reserved",
    "CONFIGURING": "its nodes are being made ready",
    "SUSPENDED": "suspended",
}
NO_LAST_WORD = "no last word: killed, or its node failed; see the logs"
SLURMS_WORDS = {
    "CANCELLED": "cancelled",
    "NODE_FAIL": "a node failed (NODE_FAIL); restart goes on from the last checkpoint",
    "TIMEOUT": "out of time before it was saved (TIMEOUT); a larger signal_s in the profile leaves more time for that",
    "OUT_OF_MEMORY": "out of memory (OUT_OF_MEMORY); submit it with more memory_gb in the profile, or more --nodes",
    "PREEMPTED": "preempted before it was saved (PREEMPTED); restart goes on from the last checkpoint",
    "BOOT_FAIL": "its nodes did not come up (BOOT_FAIL); restart it",
    "DEADLINE": "ended by SLURM at its deadline (DEADLINE)",
}

TAIL_BYTES = 1 << 18  # far more than stands between two readings of the losses


@dataclass(frozen=True)
class Progress:
    """How far training has come. time_left_s: of all its epochs, at the rate of the last reading."""

    epoch: float | None = None
    epochs: int | None = None
    images_per_s: float | None = None
    time_left_s: float | None = None


@dataclass(frozen=True)
class Overview:
    """A submitted run. why: what it waits for; reason: SLURM's own word for that; last_stop: how its ranks ended last,
    or why it cannot be read; limit_left_s: until SLURM's time limit; checkpoint: the newest one; logs: of all ranks,
    there or not."""

    run: Path
    state: State
    why: str = ""
    reason: str = ""
    job: str = ""
    progress: Progress = Progress()
    restarts: int = 0
    last_stop: str = ""
    limit_left_s: float | None = None
    nodes: str = ""
    checkpoint: Path | None = None
    logs: tuple[Path, ...] = ()
    submitted: str = ""


@dataclass(frozen=True)
class Answer:
    """What the scheduler says of jobs. asked: whether it said anything; if so, jobs that it leaves out are gone."""

    asked: bool
    jobs: dict[str, JobState]


def runs_in(folder: Path) -> list[RunFolder]:
    """The runs in a folder that have been submitted. Raises UserError if it cannot be listed."""
    try:
        found = sorted(path for path in folder.iterdir() if (path / "job").is_dir())
    except OSError as error:
        raise UserError(f"FOLDER={folder}: cannot be listed ({error.strerror}); name the folder of the runs") from None
    runs = [RunFolder(path) for path in found]
    return [run for run in runs if not JobFolder.of(run).tasks.exists()]  # else a sweep's own folder


def look(runs: Sequence[RunFolder]) -> tuple[list[Overview], str | None]:
    """An overview of each run, oldest submission first, and why SLURM could not be asked, if so.

    A run that cannot be read gets the state "unreadable"; without SLURM, states are what the folders say.
    """
    submissions: dict[Path, Submission] = {}
    rows: list[Overview] = []
    for run in runs:
        try:
            submissions[run.path] = read_submission(JobFolder.of(run))
        except (UserError, OSError) as error:
            rows.append(Overview(run.path, "unreadable", last_stop=str(error)))
    try:
        answer, complaint = ask(list(submissions.values())), None
    except UserError as error:
        answer, complaint = _local_jobs(list(submissions.values()), asked=False), str(error)
    rows += [describe(RunFolder(path), submission, answer) for path, submission in submissions.items()]
    return sorted(rows, key=lambda row: (row.submitted, row.run)), complaint


def ask(submissions: Sequence[Submission]) -> Answer:
    """Ask the scheduler about submissions' jobs, once for all. Raises UserError if SLURM does not answer."""
    jobs = [submission.job for submission in submissions if submission.cluster == "slurm"]
    local = _local_jobs(submissions, asked=True)
    return Answer(True, local.jobs | job_states(jobs)) if jobs else local


def overview(run: RunFolder) -> Overview:
    """Of one run. Raises UserError if it cannot be read, or SLURM does not answer."""
    submission = read_submission(JobFolder.of(run))
    return describe(run, submission, ask([submission]))


def describe(run: RunFolder, submission: Submission, answer: Answer) -> Overview:
    """An overview of one run, from its folder and what the scheduler has answered. What cannot be read is left out."""
    folder = JobFolder.of(run)
    history = _history(folder)
    job = answer.jobs.get(submission.job)
    asked = answer.asked or submission.cluster == "local"
    logs = JobFolder(submission.logs)
    state = _state(submission, [event for event in history if event.job == submission.job], job, asked)
    return Overview(
        run=run.path,
        state=state,
        why=_waits_for(job, history) if job and state == "waiting" else "",
        reason=job.reason or "" if job and state == "waiting" else "",
        job=submission.job,
        progress=_progress(run),
        restarts=max(0, sum(event.kind == "start" for event in history) - 1),
        last_stop=_last_stop(history, submission.job, job, state),
        limit_left_s=job.time_left_s if job and state not in OVER else None,
        nodes=_nodes(history, submission.job, job),
        checkpoint=_newest_checkpoint(run),
        logs=tuple(logs.log(submission.job, rank) for rank in range(submission.ranks)),
        submitted=submission.submitted,
    )


def _local_jobs(submissions: Sequence[Submission], asked: bool) -> Answer:
    submitted = [submission for submission in submissions if submission.cluster == "local"]
    if not submitted:
        return Answer(asked, {})
    from hpc_recolor.launch import local_executor  # imports submitit

    return Answer(asked, {one.job: JobState(one.job, "RUNNING") for one in submitted if local_executor.is_running(one)})


def _state(submission: Submission, events: Sequence[Event], job: JobState | None, asked: bool) -> State:
    """events: of this job alone."""
    last = events[-1] if events else None
    if job and job.state in WAITS:
        return "waiting"
    if job and job.state in RUNS:
        return "ending" if last and last.kind == "end" and _is_of_this_turn(last, job) else "running"
    if job and job.state in ENDS:
        return "ending"
    if not asked and (last is None or last.kind == "start"):
        return "running" if last else "waiting"
    if last and last.kind == "end" and last.exit_code == 0:
        return "finished"
    cancelled = job is not None and job.state.startswith("CANCELLED")
    if cancelled or JobFolder(submission.logs).cancelled(submission.job).exists():
        return "cancelled"
    return "saved" if last and last.kind == "end" and last.exit_code == STOPPED else "failed"


def _is_of_this_turn(event: Event, job: JobState) -> bool:
    """Whether a running job has left an event since SLURM started it last."""
    if job.restarts is not None:
        return event.restart == job.restarts
    started = _moment(job.start_time)
    happened = _moment(event.time)
    return not (started and happened) or happened >= started


def _waits_for(job: JobState, history: Sequence[Event]) -> str:
    reason = job.reason if job.state == "PENDING" else job.state
    if reason == "BeginTime":
        return f"{'queued again, ' if history else ''}starts at {_clock(job.start_time)}"
    name = (reason or "None").split(",")[0].split(" ")[0].strip("()")
    return REASONS.get(name, reason or "").format(job=job.job)


def _clock(start_time: str | None) -> str:
    """The time of the day, with its date unless that is today."""
    when = _moment(start_time)
    if when is None:
        return "a time that SLURM does not say"
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d %H:%M}"


def _moment(text: str | None) -> datetime | None:
    """In local time, which is meant where no zone is said."""
    try:
        return datetime.fromisoformat(text or "").astimezone()
    except ValueError:
        return None


def _last_stop(history: Sequence[Event], name: str, job: JobState | None, state: State) -> str:
    """How the ranks ended last: in their own words, or in SLURM's where they were killed."""
    running = state in ("running", "ending") and history and history[-1].kind == "start"
    running = running and history[-1].job == name and (job is None or _is_of_this_turn(history[-1], job))
    past = history[:-1] if running else history
    if past and past[-1].kind == "end" and (past[-1].job == name or state not in OVER):
        return past[-1].reason or f"exit code {past[-1].exit_code}"
    if state in OVER:
        return _slurms_word(job)
    return NO_LAST_WORD if past else ""


def _slurms_word(job: JobState | None) -> str:
    if job is None or job.state == "COMPLETED":
        return NO_LAST_WORD
    if job.state == "FAILED":
        return f"failed{f' with exit code {job.exit_code}' if job.exit_code else ''}; see the logs"
    return SLURMS_WORDS.get(job.state.split(" ")[0], f"ended by SLURM ({job.state}); see the logs")


def _nodes(history: Sequence[Event], name: str, job: JobState | None) -> str:
    if job and job.nodes:
        return job.nodes
    return ",".join(history[-1].nodes) if history and history[-1].job == name else ""


def _history(folder: JobFolder) -> list[Event]:
    try:
        return read_history(folder)
    except (OSError, ValueError):
        return []


def _newest_checkpoint(run: RunFolder) -> Path | None:
    try:
        return max(checkpoints.committed(run), default=None)
    except OSError:
        return None


def _progress(run: RunFolder) -> Progress:
    try:
        epochs = load_config(run.config, {}).train.epochs
    except UserError:
        epochs = None
    row = _last_reading(run.metrics)
    try:
        seen, epoch, rate = (float(row[key]) for key in ("images_seen", "epoch", "images_per_s"))
    except (KeyError, TypeError, ValueError):
        seen = epoch = rate = math.nan
    if not math.isfinite(seen + epoch + rate):
        return Progress(0.0 if epochs and not row else None, epochs)
    if not (epochs and epoch > 0 and rate > 0):
        return Progress(epoch, epochs, rate)
    left = max(0.0, epochs * seen / epoch - seen)
    return Progress(min(epoch, epochs), epochs, rate, left / rate)


def _last_reading(metrics: Path) -> dict[str, Any]:
    """The last whole row of the losses; empty without one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # a last line without its end was cut by a kill
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "train":
            return row
    return {}
