"""A lock that admits one job at a time to a run folder, on one machine or on several that share it.

RUN/.lock           the holder, as JSON; its modification time, by the file system's own clock, is the last refresh
RUN/.lock.changing  exists for the milliseconds in which a process acquires or releases the lock
"""

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.process import machine_id, start_time

# A holder refreshes every few seconds; one that has not for this long is considered dead.
STALE_S = 60.0
CHANGING_S = 10.0
POLL_S = 0.02


class Holder(BaseModel):
    """A process that holds a lock.

    machine: see process.machine_id; started: see process.start_time; job, restart: SLURM's job id, and how often the
    job was requeued.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host: str
    machine: str
    pid: int
    started: int | None
    job: str | None
    restart: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(
            host=socket.gethostname(),
            machine=machine_id(),
            pid=os.getpid(),
            started=start_time("self"),
            job=os.environ.get("SLURM_JOB_ID"),
            restart=os.environ.get("SLURM_RESTART_COUNT", "0"),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}" + (f", job {self.job}" if self.job else "")


class RunLock:
    """Context manager that locks a run folder for this process. In a run, rank 0 alone uses it.

    Entering raises UserError if another job holds the lock, or if the folder cannot be written.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / ".lock"
        self._mine = run.path / f".lock-{uuid.uuid4().hex}"
        self._held: int | None = None
        self._subject = f"run folder {run.path}"

    def __enter__(self) -> Self:
        try:
            self._held = os.open(self._mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(self._held, Holder.here().model_dump_json().encode())
            self._take()
        except OSError as error:
            self._discard()
            raise UserError(
                self._subject, f"cannot be locked ({error.strerror})", "make it writable, with free space"
            ) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        """Release the lock if this process still holds it. Never raises: a leftover lock becomes stale."""
        with contextlib.suppress(OSError, UserError), self._changing():
            if self._is_mine():
                self.path.unlink()
        self._discard()

    def refresh(self) -> bool:
        """Mark the lock as alive; to be called every few seconds. False if it was taken over or removed."""
        assert self._held is not None
        with contextlib.suppress(OSError):  # a file system that fails for a moment does not take the lock away
            os.utime(self._held)
        return self._is_mine()

    def _take(self) -> None:
        assert self._held is not None
        with self._changing():
            self._refuse_if_held()
            _try_flock(self._held)
            self._mine.replace(self.path)

    def _refuse_if_held(self) -> None:
        try:
            file = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            content, status = os.read(file, 10_000), os.fstat(file)
            flocked = not _try_flock(file)
        finally:
            os.close(file)
        holder = _parse(content)
        if self._is_alive(holder, flocked, status):
            raise UserError(
                self._subject,
                f"is in use by {holder or 'an unknown process'}",
                "wait for that job or cancel it, or give another run.name; the lock of a job that has ended expires "
                f"within {STALE_S:.0f} s",
            )

    def _is_alive(self, holder: Holder | None, flocked: bool, lock: os.stat_result) -> bool:
        me = Holder.here()
        if holder and holder.machine == me.machine:
            runs = holder.started is not None and start_time(holder.pid) == holder.started
            return runs and (flocked or _may_have_open(holder.pid, lock))  # one disk may be mounted twice
        if holder and me.job and holder.job == me.job and holder.restart != me.restart:
            return False  # a requeued job no longer runs elsewhere; file servers keep the locks of dead hosts
        if flocked:
            return True
        return self._age_s(self.path) < STALE_S

    def _age_s(self, path: Path) -> float:
        """Time since a file was modified [s], by the clock of the file system, which may be another machine's."""
        assert self._held is not None
        os.utime(self._held)
        return os.fstat(self._held).st_mtime - path.stat().st_mtime

    def _is_mine(self) -> bool:
        """Whether this process holds the lock; a lock that was taken over is another file. True after an I/O error."""
        assert self._held is not None
        try:
            return os.path.samestat(os.fstat(self._held), self.path.stat())
        except FileNotFoundError:
            return False
        except OSError:
            return True

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Admits one process at a time, on any file system. One killed inside blocks the others for STALE_S.

        Two processes that remove such a leftover at the same instant may both enter; the first learns it by `refresh`.
        """
        changing = self.path.with_name(".lock.changing")
        deadline_s = time.monotonic() + CHANGING_S
        while True:
            try:
                os.close(os.open(changing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                break
            except FileExistsError:
                self._wait_for(changing, deadline_s)
        try:
            yield
        finally:
            changing.unlink(missing_ok=True)

    def _wait_for(self, changing: Path, deadline_s: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._age_s(changing) > STALE_S:
                changing.unlink()
        if time.monotonic() > deadline_s:
            raise UserError(self._subject, "is being locked by another job", f"try again in {STALE_S:.0f} s")
        time.sleep(POLL_S)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._mine.unlink(missing_ok=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _may_have_open(pid: int, file: os.stat_result) -> bool:
    """Whether a process of this machine has a file open: a lock's holder has, but not the copy in a copied folder. True
    where that cannot be looked up."""
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return True
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(descriptor.stat(), file):
                return True
    return False


def _parse(content: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None


def _try_flock(file: int) -> bool:
    """False if another process has the file locked. Always true on file systems without flock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
