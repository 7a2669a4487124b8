"""The state of a submitted run and how its ranks ended last, decided from its history and from SLURM's job state."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from hpc_recolor.launch.job_folder import Event, JobFolder, Submission
from hpc_recolor.launch.job_states import JobState
from hpc_recolor.runtime.exit_codes import STOPPED

State = Literal["waiting", "running", "ending", "finished", "saved", "cancelled", "failed", "unreadable"]
ENDED_STATES: tuple[State, ...] = ("finished", "saved", "cancelled", "failed")

# SLURM's states of jobs that have not ended (squeue(1), JOB STATE CODES); in all others the job has ended.
WAITING = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "CONFIGURING",
    "SUSPENDED",
    "RESV_DEL_HOLD",
)
RUNNING = ("RUNNING", "RESIZING")
ENDING = ("COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED")

REASONS = {
    "None": "just submitted",
    "Priority": "other jobs have a higher priority",
    "Resources": "next, once nodes are free",
    "Dependency": "for another job to end",
    "DependencyNeverSatisfied": "for a job that can never satisfy it; cancel it",
    "JobArrayTaskLimit": "as many runs of its sweep as allowed are running",
    "JobHeldUser": "held by its user; scontrol release {job}",
    "JobHeldAdmin": "held by an administrator, or by SLURM after failed starts; scontrol release {job}",
    "ReqNodeNotAvail": "nodes are down, drained or reserved",
    "CONFIGURING": "its nodes are starting up",
    "SUSPENDED": "suspended",
}
NO_END_RECORDED = "no end recorded: killed, or its node failed; see the logs"
# How a job ended, by SLURM's state, where its ranks could not record it.
SLURM_ENDS = {
    "CANCELLED": "cancelled",
    "NODE_FAIL": "a node failed (NODE_FAIL); restart resumes from the last checkpoint",
    "TIMEOUT": "time limit reached before it was saved (TIMEOUT); increase signal_s in the profile to leave more time",
    "OUT_OF_MEMORY": "out of memory (OUT_OF_MEMORY); submit it with more memory_gb in the profile, or more --nodes",
    "PREEMPTED": "preempted before it was saved (PREEMPTED); restart resumes from the last checkpoint",
    "BOOT_FAIL": "its nodes failed to start (BOOT_FAIL); restart it",
    "DEADLINE": "ended by SLURM at its deadline (DEADLINE)",
}


def state_of(submission: Submission, history: Sequence[Event], job: JobState | None, slurm_responded: bool) -> State:
    """The state of a run's last submission.

    history: of the run; job: None if SLURM does not list it, or did not respond.
    """
    events = [event for event in history if event.job == submission.job]
    last = events[-1] if events else None
    if job and job.state in (*WAITING, *RUNNING, *ENDING):
        return _state_in_queue(last, job)
    if not slurm_responded and (last is None or last.kind == "start"):
        return "running" if last else "waiting"
    if last and last.kind == "end" and last.exit_code == 0:
        return "finished"
    cancelled = job is not None and job.state.startswith("CANCELLED")
    if cancelled or JobFolder(submission.logs).cancelled(submission.job).exists():
        return "cancelled"
    return "saved" if last and last.kind == "end" and last.exit_code == STOPPED else "failed"


def waits_for(job: JobState, history: Sequence[Event]) -> str:
    """Why a waiting job does not start yet."""
    reason = job.reason if job.state == "PENDING" else job.state
    if reason == "BeginTime":
        return f"{'requeued, ' if history else ''}starts at {_clock(job.start_time)}"
    name = (reason or "None").split(",")[0].split(" ")[0].strip("()")
    return REASONS.get(name, reason or "").format(job=job.job)


def last_stop(history: Sequence[Event], job_id: str, job: JobState | None, state: State) -> str:
    """How the ranks ended last: as they recorded it, or by SLURM's state if they were killed; empty if they did not."""
    running = state in ("running", "ending") and history and history[-1].kind == "start"
    running = running and history[-1].job == job_id and (job is None or _since_last_start(history[-1], job))
    past = history[:-1] if running else history
    if past and past[-1].kind == "end" and (past[-1].job == job_id or state not in ENDED_STATES):
        return past[-1].reason or f"exit code {past[-1].exit_code}"
    if state in ENDED_STATES:
        return _slurm_end(job)
    return NO_END_RECORDED if past else ""


def _state_in_queue(last: Event | None, job: JobState) -> State:
    if job.state in WAITING:
        return "waiting"
    if job.state in ENDING:
        return "ending"
    return "ending" if last and last.kind == "end" and _since_last_start(last, job) else "running"


def _since_last_start(event: Event, job: JobState) -> bool:
    """Whether a running job has recorded an event since SLURM started it last."""
    if job.restarts is not None:
        return event.restart == job.restarts
    started = _local_time(job.start_time)
    recorded = _local_time(event.time)
    return not (started and recorded) or recorded >= started


def _clock(start_time: str | None) -> str:
    """The time of day, with the date unless that is today."""
    when = _local_time(start_time)
    if when is None:
        return "an unknown time"
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d %H:%M}"


def _local_time(text: str | None) -> datetime | None:
    """An ISO 8601 time; without a time zone it is taken as local. None if it cannot be parsed."""
    try:
        return datetime.fromisoformat(text or "").astimezone()
    except ValueError:
        return None


def _slurm_end(job: JobState | None) -> str:
    if job is None or job.state == "COMPLETED":
        return NO_END_RECORDED
    if job.state == "FAILED":
        return f"failed{f' with exit code {job.exit_code}' if job.exit_code else ''}; see the logs"
    return SLURM_ENDS.get(job.state.split(" ")[0], f"ended by SLURM ({job.state}); see the logs")
