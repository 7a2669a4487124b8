"""RUN/job: what a submission leaves for its ranks, and what they leave for the commands that watch them.

submission.json           the last submission, with its job
options.json              its options
config.yaml               its run config
tasks.json                in the folder of a sweep: the run folders of the array's tasks
history.jsonl             a row for every start of the ranks, and for every end that they live to record
code/HASH/                the packages as they were submitted
JOB_RANK_log.out          output of a rank, over all restarts of a job
requeue-JOB-RESTART       exists if the ranks of that start request to be requeued
cancelled-JOB             exists if the user has cancelled the job: it is not requeued
ended                     a line for every end of a job's script: job, restart, POSIX time [s]
early-JOB                 a line for each restart in a row that a signal ended before its ranks could record it
excluded-JOB              the nodes, separated by commas, that the job is to be queued again without

The folder has mode 0700, because its files are executed and trusted. A sweep has one for its array, in a folder of its
own, and one in each of its runs.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from hpc_recolor.run_folder.files import to_json, write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import JobEnd
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json

FOLDER_MODE = 0o700

# A job that is requeued so often without training an image further is ended: it would go on for ever.
IDLE_STARTS = 5

# Part of file names, and an argument of SLURM's commands.
JobId = Annotated[str, Field(pattern=r"^\d+(_\d+)?$", max_length=40)]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Submission(_FrozenModel):
    """A submission.

    job: SLURM's job id, `ARRAY_TASK` for an array task; the controller's process id for a local job. logs: the job
    folder that holds the ranks' logs, of the run or of its sweep. submitted: UTC, ISO 8601. code: hash of the snapshot.
    first_submitted: of the run's first submission, None in older files.
    command: the command line that submits the same again. script: name of the file that sbatch got, which no
    other job has: SLURM counts ids from 1 again after it has lost its state. None for a local job, and in older files.
    """

    cluster: Literal["slurm", "local"]
    job: JobId
    ranks: int
    nodes: int
    logs: Path
    partition: str | None
    time: str | None
    submitted: str
    code: str
    commit: str | None
    command: str
    script: str | None = None
    first_submitted: str | None = None


class Event(_FrozenModel):
    """A start or an end of the ranks.

    restart: how often SLURM has requeued the job. images: trained and saved before a start. reason: of an end.
    """

    kind: Literal["start", "end"]
    job: JobId
    restart: int
    time: str
    ranks: int
    nodes: tuple[str, ...]
    images: int | None = None
    exit_code: int | None = None
    reason: str | None = None

    @classmethod
    def now(cls, kind: str, job: str, restart: int, ranks: int, nodes: Sequence[str], **more: object) -> Self:
        """An event at this time. more: its other fields."""
        fields = {"kind": kind, "job": job, "restart": restart, "time": timestamp(), "ranks": ranks, "nodes": nodes}
        return cls.model_validate(fields | more)


def timestamp() -> str:
    """The time in seconds, as in events (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class JobFolder:
    """Paths inside a job folder."""

    TASKS: ClassVar[str] = "tasks.json"
    ENDED: ClassVar[str] = "ended"

    path: Path

    @classmethod
    def of(cls, run: RunFolder) -> "JobFolder":
        """The job folder of a run."""
        return cls(run.path / "job")

    @property
    def submission(self) -> Path:
        """The last `Submission`."""
        return self.path / "submission.json"

    @property
    def config(self) -> Path:
        """The run config."""
        return self.path / "config.yaml"

    @property
    def options(self) -> Path:
        """The `JobOptions`."""
        return self.path / "options.json"

    @property
    def tasks(self) -> Path:
        """Run folders of an array's tasks; exists in the folder of a sweep only."""
        return self.path / self.TASKS

    @property
    def history(self) -> Path:
        """An `Event` a line."""
        return self.path / "history.jsonl"

    @property
    def ended(self) -> Path:
        """When the scripts of its jobs ended."""
        return self.path / self.ENDED

    @property
    def code(self) -> Path:
        """The folder of snapshots."""
        return self.path / "code"

    def log(self, job: str, rank: int) -> Path:
        """Output of a rank."""
        return self.path / f"{job}_{rank}_log.out"

    def requeue(self, job: str, restart: int) -> Path:
        """The request of the ranks of one start to be requeued."""
        return self.path / f"requeue-{job}-{restart}"

    def cancelled(self, job: str) -> Path:
        """The marker that keeps a job from being requeued."""
        return self.path / f"cancelled-{job}"

    def excluded(self, job: str) -> Path:
        """The nodes, separated by commas, that the job is to be queued again without."""
        return self.path / f"excluded-{job}"

    def make(self) -> None:
        """Create the folder with mode 0700. Raises UserError if that fails, or if it belongs to another user."""
        make_private(self.path)

    def check(self) -> None:
        """Raises UserError unless it is a folder, not a link, owned by this user with mode 0700."""
        check_private(self.path)


def make_private(path: Path) -> None:
    """Create a folder with mode 0700. Raises UserError if that fails, or if it belongs to another user."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        if not path.is_symlink() and path.stat().st_uid == os.geteuid():
            path.chmod(FOLDER_MODE)
    except OSError as error:
        raise UserError(
            str(path), f"cannot be created ({error.strerror})", "choose a folder that you can write to"
        ) from None
    check_private(path)


def check_private(path: Path) -> None:
    """Raises UserError unless `path` is a folder, not a link, owned by this user with mode 0700."""
    try:
        found = path.lstat()
    except OSError as error:
        raise UserError(str(path), f"not found ({error.strerror})", "submit the run first") from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode != FOLDER_MODE:
        raise UserError(
            str(path),
            f"belongs to user {found.st_uid} with mode {mode:o}, but its files are executed: it must be a folder of "
            f"user {os.geteuid()} with mode {FOLDER_MODE:o}",
            "remove it and submit again",
        )


def write_submission(folder: JobFolder, submission: Submission) -> None:
    """Record the last submission."""
    write_atomically(folder.submission, to_json(submission, indent=1))


def read_submission(folder: JobFolder) -> Submission:
    """The last submission. Raises UserError if there is none, or if the folder is not private."""
    folder.check()
    try:
        submission = Submission.model_validate(parse_json(folder.submission.read_bytes()))
        submission.logs.exists()  # raises OSError where this cannot be a folder
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not written by `submit`"
        raise UserError(str(folder.submission), f"cannot be read ({reason})", "submit the run again") from None
    of_sweep = "_" in submission.job
    return submission if of_sweep else submission.model_copy(update={"logs": folder.path})  # it may have been moved


def runs_of_sweep(folder: JobFolder) -> list[RunFolder]:
    """The runs of an array's tasks, in their order; empty in the folder of a run. Raises UserError if it is damaged."""
    if not folder.tasks.exists():
        return []
    folder.check()
    try:
        paths = parse_json(folder.tasks.read_bytes())
    except (OSError, ValueError):
        paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError(str(folder.tasks), "is not a list of run folders", "restore it, or name the runs themselves")
    return [RunFolder(Path(path)) for path in paths]


def append_event(folder: JobFolder, event: Event) -> None:
    """Record a start or an end. Only rank 0 appends."""
    with folder.history.open("ab+") as file:
        cut_short = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write((b"\n" if cut_short else b"") + to_json(event) + b"\n")


def read_history(folder: JobFolder) -> list[Event]:
    """All starts and ends, oldest first. A row that was truncated by a kill is left out."""
    if not folder.history.exists():
        return []
    events = []
    for line in folder.history.read_text(errors="replace").splitlines():
        try:
            events.append(Event.model_validate(parse_json(line)))
        except ValueError:
            continue
    return events


def read_ends(folder: JobFolder, history: Sequence[Event]) -> list[JobEnd]:
    """The ends of the scripts that started the ranks of a history, in the order of time.

    Those that were killed have recorded nothing. folder: with the logs of the ranks, of the run or of its sweep.
    """
    own = {(event.job, str(event.restart)) for event in history}
    try:
        rows = [line.split() for line in folder.ended.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    rows = [row for row in rows if len(row) == 3 and (row[0], row[1]) in own and _is_time(row[2])]
    ends = [JobEnd(time=float(time), job=f"{job} {restart}") for job, restart, time in rows]
    return sorted(ends, key=lambda end: end.time)


def _is_time(text: str) -> bool:
    return re.fullmatch(r"\d+\.\d+", text) is not None
