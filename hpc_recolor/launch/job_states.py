"""What SLURM says of jobs: waiting and running ones by squeue, those that are over by its accounting."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hpc_recolor.launch.slurm_query import NOTHING, rows, run
from hpc_recolor.runtime.errors import UserError

# As squeue(1) calls jobs that will not run again; "CANCELLED by 0" too.
OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "REVOKED"),
    "PREEMPTED",
)


@dataclass(frozen=True)
class JobState:
    """A job by SLURM's words. reason: why it waits; time_left_s: until its limit; start_time: when it began, or may;
    exit_code: 128 and the signal where one ended it, as in shells."""

    job: str
    state: str
    reason: str | None = None
    nodes: str = ""
    time_left_s: int | None = None
    start_time: str | None = None
    restarts: int | None = None
    exit_code: int | None = None


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """What SLURM knows of jobs, by id; tasks of arrays are `12_3`. Those that it does not know are left out."""
    if not jobs:
        return {}
    wanted = set(jobs)
    queued = {state.job: state for state in _queued() if state.job in wanted}
    # Only accounting has exit codes, and is a little late.
    asked = sorted(job for job in wanted if job not in queued or queued[job].state.startswith(OVER))
    ended = _ended(asked) if asked else {}
    return ended | queued | {job: state for job, state in ended.items() if state.state.startswith(OVER)}


def is_known(job: str) -> bool:
    """Whether SLURM still knows a job, anybody's, waiting, running or over not long ago.

    Raises UserError if it does not answer.
    """
    try:
        run(["squeue", "--noheader", "--jobs", job])
    except UserError as error:
        if "Invalid job id" in str(error):
            return False
        raise
    return True


def array_tasks(job: str) -> Iterator[str]:
    """The ids behind squeue's `12_[0-3,7%2]` and `12_[0-60:3]`; any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if not match:
        yield job
        return
    for part in re.finditer(r"(\d+)(?:-(\d+))?(?::(\d+))?", match[2]):
        first, last, step = int(part[1]), int(part[2] or part[1]), int(part[3] or 1)
        yield from (f"{match[1]}_{number}" for number in range(first, last + 1, step))


def _queued() -> Iterator[JobState]:
    """This user's jobs that are not long over."""
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%i|%T|%r|%N|%L|%S"]
    for job, state, reason, nodes, left, start in rows(run(command), 6):
        known = JobState(job, state, reason, nodes, _seconds(left), _said(start))
        yield from (replace(known, job=task) for task in array_tasks(job))


def _ended(jobs: Sequence[str]) -> dict[str, JobState]:
    try:
        text = run(["sacct", "-nPX", "-j", ",".join(jobs), "-o", "JobID,State,NodeList,Start,ExitCode"])
    except UserError:
        return {}  # SLURM keeps no accounts
    states: dict[str, JobState] = {}
    for job, state, nodes, start, code in rows(text, 5):
        known = JobState(job, state, None, _said(nodes) or "", None, _said(start), None, _exit_code(code))
        states |= {task: replace(known, job=task) for task in array_tasks(job) if task in jobs}
    return states


def _said(text: str) -> str | None:
    return None if text in NOTHING else text


def _exit_code(text: str) -> int:
    """Of sacct's CODE:SIGNAL."""
    code, _, number = text.partition(":")
    return 128 + int(number) if int(number or 0) else int(code)


def _seconds(text: str) -> int | None:
    """Of squeue's time left: D-H:M:S, H:M:S or M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
