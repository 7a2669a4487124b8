"""One job at a time in a run folder, on one machine or on many that share it.

RUN/.lock           who holds it, as JSON; its age, by the file system's own clock, is when the holder last refreshed
RUN/.lock.changing  there for the milliseconds in which somebody takes or leaves the lock
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

# A holder refreshes every few seconds; one that has not for so long is gone.
STALE_S = 60.0
CHANGING_S = 10.0
POLL_S = 0.02


class Holder(BaseModel):
    """A process that holds a lock. machine: the boot and the process namespace that pid counts in, since host names
    may be shared; started: of the process [clock ticks after boot], which tells it from a later one with its number;
    job, restart: SLURM's, restart counts how often the job was requeued."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host: str
    machine: str
    pid: int
    started: int | None
    job: str | None
    restart: str

    @classmethod
    def here(cls) -> "Holder":
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
    """Holds a run folder for this process. One process a run takes it, rank 0.

    Entering raises UserError if another job holds the folder, or if it cannot be written.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / ".lock"
        self._mine = run.path / f".lock-{uuid.uuid4().hex}"
        self._held: int | None = None

    def __enter__(self) -> Self:
        try:
            self._held = os.open(self._mine, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(self._held, Holder.here().model_dump_json().encode())
            self._take()
        except OSError as error:
            self._forget()
            raise UserError(
                f"run folder {self.run.path} cannot be locked ({error.strerror}); make it writable, with room in it"
            ) from None
        except BaseException:
            self._forget()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        """Leave the lock, if it is still this process's. Never raises: a lock that is left over turns stale."""
        with contextlib.suppress(OSError, UserError), self._changing():
            if self._is_mine():
                self.path.unlink()
        self._forget()

    def refresh(self) -> bool:
        """Say that this process lives: every few seconds. False if the lock is another's by now, or was removed."""
        assert self._held is not None
        with contextlib.suppress(OSError):  # a file system that is away for a moment takes nothing from anybody
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
            content = os.read(file, 10_000)
            flocked = not _try_flock(file)
        finally:
            os.close(file)
        holder = _parse(content)
        if self._is_alive(holder, flocked):
            raise UserError(
                f"run folder {self.run.path} is in use by {holder or 'a process that cannot be told'}: wait for that "
                "job or cancel it, or give another run.name; a job that is gone frees the folder within "
                f"{STALE_S:.0f} s"
            )

    def _is_alive(self, holder: Holder | None, flocked: bool) -> bool:
        me = Holder.here()
        if holder and holder.machine == me.machine:
            return holder.started is not None and start_time(holder.pid) == holder.started
        if holder and me.job and holder.job == me.job and holder.restart != me.restart:
            return False  # a job runs once at a time: it was requeued; file servers keep locks of hosts that died
        if flocked:
            return True
        return self._age_s(self.path) < STALE_S

    def _age_s(self, path: Path) -> float:
        """By the clock of the file system, which may be another machine's."""
        assert self._held is not None
        os.utime(self._held)
        return os.fstat(self._held).st_mtime - path.stat().st_mtime

    def _is_mine(self) -> bool:
        """A lock that was taken over is another file; one that cannot be seen just now is still this process's."""
        assert self._held is not None
        try:
            return os.path.samestat(os.fstat(self._held), self.path.stat())
        except FileNotFoundError:
            return False
        except OSError:
            return True

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time, on any file system. One that was killed meanwhile stands in the way for STALE_S.

        Two that clear such a one away in the same instant may both go on; then `refresh` tells the first of them.
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
            raise UserError(
                f"run folder {self.run.path} is being taken by another job just now; try again in {STALE_S:.0f} s"
            )
        time.sleep(POLL_S)

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._mine.unlink(missing_ok=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _parse(content: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None


def _try_flock(file: int) -> bool:
    """False if another process has the file locked. True says nothing where the file system has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
