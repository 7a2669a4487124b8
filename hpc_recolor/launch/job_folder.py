"""RUN/job: what a submission leaves for its ranks, and what they leave for the commands that watch them.

submission.json           what was submitted last, and as which job
options.json              how it was submitted
config.yaml               the run config of that submission
tasks.json                in a sweep's folder: the run folders of the array's tasks
history.jsonl             a row at every start of the ranks, and at every end that they live to see
code/HASH/                the packages as they were submitted
JOB_RANK_log.out          what a rank prints, over all restarts of a job
requeue-JOB-RESTART       there if the ranks of that start ask to be queued again
cancelled-JOB             there if the user has cancelled the job: it is not queued again

The folder is 0700: what lies in it is run, and believed. A sweep has one such folder for its array, in a folder of its
own, and one in each of its runs.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError

FOLDER_MODE = 0o700


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Submission(Record):
    """What was submitted.

    job: SLURM's id, of an array task `ARRAY_TASK`; of a local job the controller's process id. logs: the folder of the
    ranks' logs, the run's own job folder or the sweep's. command: what to type to submit the same again.
    """

    cluster: Literal["slurm", "local"]
    job: str
    ranks: int
    nodes: int
    logs: Path
    partition: str | None
    time: str | None
    submitted: str
    code: str
    commit: str | None
    command: str


class Event(Record):
    """A start of the ranks, or their end. restart: how often SLURM has queued the job again. reason: of an end."""

    kind: Literal["start", "end"]
    job: str
    restart: int
    time: str
    ranks: int
    nodes: tuple[str, ...]
    exit_code: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class JobFolder:
    """The places inside a job folder."""

    TASKS: ClassVar[str] = "tasks.json"

    path: Path

    @classmethod
    def of(cls, run: RunFolder) -> "JobFolder":
        return cls(run.path / "job")

    @property
    def submission(self) -> Path:
        return self.path / "submission.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def options(self) -> Path:
        return self.path / "options.json"

    @property
    def tasks(self) -> Path:
        return self.path / self.TASKS

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def code(self) -> Path:
        return self.path / "code"

    def log(self, job: str, rank: int) -> Path:
        return self.path / f"{job}_{rank}_log.out"

    def requeue(self, job: str, restart: int) -> Path:
        return self.path / f"requeue-{job}-{restart}"

    def cancelled(self, job: str) -> Path:
        return self.path / f"cancelled-{job}"

    def make(self) -> None:
        """Create the folder, for its owner alone. Raises UserError if it is there and somebody else's."""
        make_private(self.path)

    def check(self) -> None:
        """Raises UserError unless the folder is a real one, this user's, and closed to all others."""
        check_private(self.path)


def make_private(path: Path) -> None:
    """Create a folder for its owner alone. Raises UserError if it is there and somebody else's, or cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        if not path.is_symlink() and path.stat().st_uid == os.geteuid():
            path.chmod(FOLDER_MODE)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose a folder that you can write") from None
    check_private(path)


def check_private(path: Path) -> None:
    """Raises UserError unless `path` is a real folder, this user's, and closed to all others."""
    try:
        found = path.lstat()
    except OSError as error:
        raise UserError(f"{path} is not there ({error.strerror}); submit the run first") from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode != FOLDER_MODE:
        raise UserError(
            f"{path} belongs to user {found.st_uid} with mode {mode:o}, but what lies in it is run: it must be a "
            f"folder of user {os.geteuid()} with mode {FOLDER_MODE:o}; remove it and submit again"
        )


def write_submission(folder: JobFolder, submission: Submission) -> None:
    """Note what was submitted."""
    write_atomically(folder.submission, submission.model_dump_json(indent=1).encode())


def read_submission(folder: JobFolder) -> Submission:
    """What was submitted last. Raises UserError if nothing was, or the folder is not to be trusted."""
    folder.check()
    try:
        return Submission.model_validate_json(folder.submission.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not what `submit` writes"
        raise UserError(f"{folder.submission} cannot be read ({reason}); submit the run again") from None


def append_event(folder: JobFolder, event: Event) -> None:
    """Note a start or an end. One process at a time appends, rank 0."""
    with folder.history.open("ab+") as file:
        cut_short = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write(b"\n" * bool(cut_short) + event.model_dump_json().encode() + b"\n")


def read_history(folder: JobFolder) -> list[Event]:
    """All starts and ends, oldest first. A row that a kill cut short is left out."""
    if not folder.history.exists():
        return []
    events = []
    for line in folder.history.read_text(errors="replace").splitlines():
        try:
            events.append(Event.model_validate(json.loads(line)))
        except ValueError:
            continue
    return events
