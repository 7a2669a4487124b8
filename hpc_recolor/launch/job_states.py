"""States of jobs in SLURM: waiting and running ones from squeue, ended ones from accounting."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_recolor.launch.job_folder import Submission
from hpc_recolor.launch.slurm_command import InvalidJobIdError, parse_rows, run_command, value_or_none
from hpc_recolor.launch.slurm_time import parse_time_left
from hpc_recolor.runtime.errors import UserError

# Prefixes of squeue(1)'s states of jobs that will not run again; "CANCELLED by 0" is one too.
ENDED_JOB_STATES = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
    "REVOKED",
    "PREEMPTED",
)

# Fields of sacct(1).
RECORDED = "JobID,State,NodeList,Start,ExitCode"


@dataclass(frozen=True)
class JobState:
    """A job as SLURM describes it.

    reason: why it waits. time_left_s: until its time limit. start_time: when it started, or is expected to. exit_code:
    128 + signal number if a signal ended it, as in shells. script: the file that it was submitted with, see Submission;
    None if SLURM does not tell.
    """

    job: str
    state: str
    reason: str | None = None
    nodes: str = ""
    time_left_s: int | None = None
    start_time: str | None = None
    restarts: int | None = None
    exit_code: int | None = None
    script: Path | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it will not run again."""
        return self.state.startswith(ENDED_JOB_STATES)


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """States of jobs by id, `12_3` for tasks of arrays. Jobs that SLURM does not know are left out."""
    if not jobs:
        return {}
    wanted = set(jobs)
    queued = {state.job: state for state in _queued() if state.job in wanted}
    # Only accounting has exit codes, and is a little late.
    asked = sorted(job for job in wanted if job not in queued or queued[job].has_ended)
    recorded = _recorded(asked) if asked else {}
    return recorded | queued | {job: state for job, state in recorded.items() if state.has_ended}


def job_of(submission: Submission, jobs: Mapping[str, JobState]) -> JobState | None:
    """The state of a submission's job; None if SLURM does not know it, or knows another job by its id.

    A run that was moved still has its job; a copy of it has none.
    """
    job = jobs.get(submission.job)
    if job is None or job.script is None or submission.script is None:
        return job
    return job if job.script.name == submission.script and not _is_copy(submission, job.script) else None


def _is_copy(submission: Submission, script: Path) -> bool:
    """Whether the job's script still stands in another job folder than the submission's logs."""
    try:
        return script.parent != submission.logs and script.exists() and not script.parent.samefile(submission.logs)
    except OSError:  # another user's folder, or one that has gone
        return script.parent.name != submission.logs.name


def is_known(job: str) -> bool:
    """Whether SLURM knows a job of any user, waiting, running or ended recently.

    Raises UserError if SLURM does not respond.
    """
    try:
        run_command(["squeue", "--noheader", "--jobs", job])
    except InvalidJobIdError:
        return False
    return True


def array_tasks(job: str) -> Iterator[str]:
    """The ids of squeue's `12_[0-3,7%2]` and `12_[0-60:3]`; any other id unchanged."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if not match:
        yield job
        return
    for part in re.finditer(r"(\d+)(?:-(\d+))?(?::(\d+))?", match[2]):
        first, last, step = int(part[1]), int(part[2] or part[1]), int(part[3] or 1)
        yield from (f"{match[1]}_{number}" for number in range(first, last + 1, step))


def _queued() -> Iterator[JobState]:
    """This user's jobs that squeue still lists."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%i|%T|%r|%N|%L|%S|%o"]
    for job, state, reason, nodes, left, start, script in parse_rows(run_command(command), 7):
        known = JobState(
            job=job,
            state=state,
            reason=reason,
            nodes=nodes,
            time_left_s=parse_time_left(left),
            start_time=value_or_none(start),
            script=_script(script),
        )
        yield from (replace(known, job=task) for task in array_tasks(job))


def _recorded(jobs: Sequence[str]) -> dict[str, JobState]:
    """What accounting has of jobs; empty where SLURM keeps no accounting."""
    command = ["sacct", "-nPX", "-j", ",".join(jobs), "-o"]
    try:
        text = run_command([*command, f"{RECORDED},SubmitLine"])
    except UserError:
        try:
            text = run_command([*command, f"{RECORDED},JobName"])  # before SLURM 21.08
        except UserError:
            return {}
    states: dict[str, JobState] = {}
    for job, state, nodes, start, code, script in parse_rows(text, 6):
        known = JobState(
            job=job,
            state=state,
            nodes=value_or_none(nodes) or "",
            start_time=value_or_none(start),
            exit_code=_exit_code(code),
            script=_script(script),
        )
        states |= {task: replace(known, job=task) for task in array_tasks(job) if task in jobs}
    return states


def _script(command: str) -> Path | None:
    """submitit's script in the command that a job was submitted with, or its name, where SLURM knows no more."""
    found = re.search(r"(/.*?)?\.submission_file_\w+\.sh", command)
    return found and Path(found[0])


def _exit_code(text: str) -> int:
    """Of sacct's CODE:SIGNAL."""
    code, _, number = text.partition(":")
    return 128 + int(number) if int(number or 0) else int(code)
