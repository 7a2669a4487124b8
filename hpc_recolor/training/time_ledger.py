"""Records what a run spends its time on, for `time_account.account`."""

import atexit
import os
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import ACTIVITIES, Mark, Start, read_starts, write_starts
from hpc_recolor.runtime.errors import EarlyEndError
from hpc_recolor.runtime.launcher_environment import ADOPTED_JOB
from hpc_recolor.runtime.process import age_s, start_time

WRITE_EVERY_S = 1.0  # what a kill may leave unaccounted for
# Writing takes no more than this share of the time, however slow the disk and long the record.
WRITE_SHARE = 0.005
KEPT_MARKS = 16


def process_age_s() -> float:
    """Since when this process has been running [s]."""
    return age_s(start_time("self") or 0)


class TimeLedger:
    """The seconds of this start by activity. Rank 0 opens it, and so writes them to the run folder; others only count.

    age_s: time spent on starting before it was made [s]. clock: returns the time [s]. A record that cannot be written
    is left out: no run ends for its account.
    """

    def __init__(self, age_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = time.time() - age_s
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0) | {"starting": age_s}
        self._activity, self._since_s = "starting", clock()
        self._marks: list[Mark] = []
        self._reached: Mark | None = None
        self._run: RunFolder | None = None
        self._past: list[Start] = []
        self._images = 0
        self._due_s = 0.0

    def open(self, run: RunFolder, images_seen: int) -> None:
        """Write to this run's folder from here on; images_seen: that it resumes from."""
        self._run, self._images, self._past = run, images_seen, read_starts(run)
        self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None or isinstance(error, EarlyEndError):  # else what ends is lost, as what it was doing
            self._activity = "starting"  # which includes ending, as far as it can be written
        atexit.register(self._close_at_exit)

    def _close_at_exit(self) -> None:
        if self._run and [start.began for start in read_starts(self._run)[-1:]] == [self._began]:
            self.close()  # unless the run has been started again since

    def close(self) -> None:
        """Write what has been spent by now."""
        self._count()
        self._write()

    def enter_phase(self, phase: str) -> None:
        """The main thread does this from here on, see EnterPhase; phase: the Trainer's."""
        self._count()
        before, self._activity = self._activity, self._activity_of(phase)
        # Readers count the time since the record as its activity.
        has_started = before == "starting" and self._activity == "training"
        if has_started or self._since_s >= self._due_s:
            self._write()

    def start_checkpoint(self, images_seen: int) -> None:
        """A checkpoint of what has been reached by now is being saved."""
        self._count()
        self._reached = Mark(images=images_seen, seconds=dict(self._seconds))

    def commit_checkpoint(self, images_seen: int) -> None:
        """The checkpoint that was started last is committed."""
        self._count()
        if self._reached and self._reached.images == images_seen:
            saved = self._reached.seconds | {"saving": self._seconds["saving"]}
            self._marks = [*self._marks[1 - KEPT_MARKS :], Mark(images=images_seen, seconds=saved)]
            self._write()

    def _activity_of(self, phase: str) -> str:
        if phase in ACTIVITIES:
            return phase
        return "starting" if not self._seconds["training"] and self._activity != "training" else "training"

    def _count(self) -> None:
        now_s = self._clock()
        self._seconds[self._activity] += now_s - self._since_s
        self._since_s = now_s

    def _write(self) -> None:
        if self._run is None:
            return
        present = Start(
            began=self._began,
            images=self._images,
            activity=self._activity,
            seconds=self._seconds,
            marks=tuple(self._marks),
            job=os.environ.get(ADOPTED_JOB),
        )
        with suppress(OSError):
            write_starts(self._run, [*self._past, present])
        took_s = self._clock() - self._since_s
        self._due_s = self._since_s + max(WRITE_EVERY_S, took_s / WRITE_SHARE)
