"""An overview of each submitted run, from its folder and from what the scheduler says about its job."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpc_recolor.launch.job_folder import Event, JobFolder, Submission, read_ends, read_history, read_submission
from hpc_recolor.launch.job_states import JobState, job_of, job_states
from hpc_recolor.launch.lifecycle import ENDED_STATES, State, last_stop, state_of, waits_for
from hpc_recolor.launch.training_progress import NO_PROGRESS, TrainingProgress, read_progress
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import TimeAccount, account, read_starts
from hpc_recolor.runtime.errors import UserError


@dataclass(frozen=True)
class Overview:
    """A submitted run.

    why: what it waits for; reason: SLURM's name for that. last_stop: how its ranks ended last, or why the run cannot be
    read. limit_left_s: until SLURM's time limit. checkpoint: the newest one. logs: of all ranks, whether they exist or
    not. submitted: UTC, ISO 8601. time: where the wall clock went since the run was first submitted, for each start and
    for the wait after the last; empty if that was not recorded.
    """

    run: Path
    state: State
    why: str = ""
    reason: str = ""
    job: str = ""
    progress: TrainingProgress = NO_PROGRESS
    restarts: int = 0
    last_stop: str = ""
    limit_left_s: float | None = None
    nodes: str = ""
    checkpoint: Path | None = None
    logs: tuple[Path, ...] = ()
    submitted: str = ""
    time: tuple[TimeAccount, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether the run's job has ended and is not queued."""
        return self.state in ENDED_STATES


@dataclass(frozen=True)
class SchedulerReply:
    """The states of jobs by id. slurm_responded: if so, SLURM does not know the jobs that are missing here."""

    slurm_responded: bool
    jobs: dict[str, JobState]


def runs_in(folder: Path) -> list[RunFolder]:
    """The submitted runs in a folder, without the folders of sweeps. Raises UserError if it cannot be listed."""
    try:
        found = sorted(path for path in folder.iterdir() if (path / "job").is_dir())
    except OSError as error:
        raise UserError(
            f"FOLDER={folder}", f"cannot be listed ({error.strerror})", "name the folder of the runs"
        ) from None
    runs = [RunFolder(path) for path in found]
    return [run for run in runs if not JobFolder.of(run).tasks.exists()]


def inspect(runs: Sequence[RunFolder]) -> tuple[list[Overview], UserError | None]:
    """An overview of each run, oldest submission first, and the error of SLURM if it did not respond.

    A run that cannot be read gets the state "unreadable". Without SLURM, states are read from the folders alone.
    """
    submissions: dict[Path, Submission] = {}
    rows: list[Overview] = []
    for run in runs:
        try:
            submissions[run.path] = read_submission(JobFolder.of(run))
        except (UserError, OSError) as error:
            rows.append(Overview(run=run.path, state="unreadable", last_stop=str(error)))
    failure = None
    try:
        reply = ask_scheduler(list(submissions.values()))
    except UserError as error:
        reply, failure = SchedulerReply(slurm_responded=False, jobs=_local_jobs(submissions.values())), error
    rows += [make_overview(RunFolder(path), submission, reply) for path, submission in submissions.items()]
    return sorted(rows, key=lambda row: (row.submitted, row.run)), failure


def inspect_one(run: RunFolder) -> Overview:
    """An overview of one run. Raises UserError if it cannot be read, or SLURM does not respond."""
    submission = read_submission(JobFolder.of(run))
    return make_overview(run, submission, ask_scheduler([submission]))


def ask_scheduler(submissions: Sequence[Submission]) -> SchedulerReply:
    """States of the submissions' jobs, with one query for all. Raises UserError if SLURM does not respond."""
    slurm_jobs = [submission.job for submission in submissions if submission.cluster == "slurm"]
    return SchedulerReply(slurm_responded=True, jobs=_local_jobs(submissions) | job_states(slurm_jobs))


def make_overview(run: RunFolder, submission: Submission, reply: SchedulerReply) -> Overview:
    """An overview of one run. Files that cannot be read leave their fields empty."""
    folder = JobFolder.of(run)
    history = _history(folder)
    job = job_of(submission, reply.jobs)
    logs = JobFolder(submission.logs)
    state = state_of(submission, history, job, reply.slurm_responded or submission.cluster == "local")
    waiting = job if state == "waiting" else None
    return Overview(
        run=run.path,
        state=state,
        why=waits_for(waiting, history) if waiting else "",
        reason=waiting.reason or "" if waiting else "",
        job=submission.job,
        progress=read_progress(run),
        restarts=max(0, sum(event.kind == "start" for event in history) - 1),
        last_stop=last_stop(history, submission.job, job, state),
        limit_left_s=job.time_left_s if job and state not in ENDED_STATES else None,
        nodes=_nodes(history, submission.job, job),
        checkpoint=_newest_checkpoint(run),
        logs=tuple(logs.log(submission.job, rank) for rank in range(submission.ranks)),
        submitted=submission.submitted,
        time=_account(run, submission, history, state),
    )


def _local_jobs(submissions: Iterable[Submission]) -> dict[str, JobState]:
    local = [submission for submission in submissions if submission.cluster == "local"]
    if not local:
        return {}
    from hpc_recolor.launch import local_executor  # imports submitit

    running = [submission.job for submission in local if local_executor.is_running(submission)]
    return {job: JobState(job=job, state="RUNNING") for job in running}


def _nodes(history: Sequence[Event], job_id: str, job: JobState | None) -> str:
    if job and job.nodes:
        return job.nodes
    return ",".join(history[-1].nodes) if history and history[-1].job == job_id else ""


def _history(folder: JobFolder) -> list[Event]:
    try:
        return read_history(folder)
    except (OSError, ValueError):
        return []


def _account(run: RunFolder, submission: Submission, history: Sequence[Event], state: State) -> tuple[TimeAccount, ...]:
    starts, ends = read_starts(run), read_ends(JobFolder(submission.logs), history)
    try:
        submitted = datetime.fromisoformat(submission.first_submitted or submission.submitted).timestamp()
    except ValueError:
        return ()
    if not starts:
        return ()
    # The ranks of a job that was queued again record themselves late: until then the last start is an earlier one.
    job = starts[-1].job
    newest = next((f"{event.job} {event.restart}" for event in reversed(history) if event.kind == "start"), job)
    is_over = job is not None and (job != newest or any(end.job == job for end in ends))
    now = None if state in ENDED_STATES else time.time()
    return tuple(account(starts, submitted, now, state in ("running", "ending") and not is_over, ends))


def _newest_checkpoint(run: RunFolder) -> Path | None:
    try:
        return max(checkpoints.committed(run), default=None)
    except OSError:
        return None
