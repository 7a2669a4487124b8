"""RUN/time.json: what each start of a run spent its time on; and the account of its wall clock since it was submitted.

A start that is killed has recorded all but its last seconds, and its checkpoints tell how much of that was in vain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from pydantic import BaseModel, ConfigDict, ValidationError

from hpc_recolor.run_folder.files import to_json, write_atomically
from hpc_recolor.run_folder.folder import RunFolder

# What ranks do. Until the first step all but measuring is starting, and so is what comes after the last save.
ACTIVITIES = ("starting", "training", "saving", "measuring")
IN_VAIN = ("training", "saving", "measuring")  # if no checkpoint holds what came of it


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class Mark(_FrozenModel):
    """A committed checkpoint. images: that it holds. seconds: spent on each activity to reach them and to save them."""

    images: int
    seconds: dict[str, float]


class Start(_FrozenModel):
    """A start of the ranks. began: POSIX time [s]. images: that it resumed from.

    activity: the present one, or the last. seconds: spent on each. marks: its last checkpoints, oldest first. job: with
    its restart, `7 0`; None outside of jobs, and in older files.
    """

    began: float
    images: int
    activity: str
    seconds: dict[str, float]
    marks: tuple[Mark, ...] = ()
    job: str | None = None

    @property
    def until(self) -> float:
        """When it was written [POSIX time, s]."""
        return self.began + sum(self.seconds.values())


@dataclass(frozen=True)
class JobEnd:
    """When the script of a job ended [POSIX time, s]. job: as a Start's."""

    time: float
    job: str


class _Starts(_FrozenModel):
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class TimeAccount:
    """Where wall-clock time went [s]. starting: and ending processes and jobs.

    waiting: no job ran: in the queue, or ended and not yet submitted again. lost: training, saving and measuring that
    were done again, as a kill came before the next checkpoint.
    """

    training: float = 0.0
    starting: float = 0.0
    saving: float = 0.0
    measuring: float = 0.0
    waiting: float = 0.0
    lost: float = 0.0

    @property
    def total(self) -> float:
        """All of it [s]."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share of training that counts, 0 to 1; 0 if no time has passed."""
        return self.training / self.total if self.total else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """By name [s]."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "TimeAccount") -> "TimeAccount":
        theirs = other.seconds
        return TimeAccount(**{name: value + theirs[name] for name, value in self.seconds.items()})


def describe(account: TimeAccount) -> str:
    """Percentages that sum to 100, the largest first: `71 % training, 20 % waiting, 9 % starting`."""
    shares = percentages(account)
    named = sorted((name for name in shares if shares[name]), key=lambda name: -shares[name])
    return ", ".join(f"{shares[name]} % {name}" for name in named)


def percentages(account: TimeAccount) -> dict[str, int]:
    """Whole percentages by name, which sum to 100, or to 0 if no time has passed.

    The largest remainders are rounded up.
    """
    total = account.total
    if total <= 0:
        return dict.fromkeys(account.seconds, 0)
    exact = {name: 100 * value / total for name, value in account.seconds.items()}
    rounded = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: rounded[name] - exact[name])
    for name in by_remainder[: 100 - sum(rounded.values())]:
        rounded[name] += 1
    return rounded


def read_starts(run: RunFolder) -> list[Start]:
    """The starts of a run, oldest first; none if they were not recorded or cannot be read."""
    try:
        return list(_Starts.model_validate_json(run.time.read_bytes()).starts)
    except (OSError, ValidationError):
        return []


def write_starts(run: RunFolder, starts: Sequence[Start]) -> None:
    """Replace the record. Not synced: after a power cut an account may miss some minutes. Raises OSError."""
    write_atomically(run.time, to_json(_Starts(starts=tuple(starts))), durable=False)


def account(
    starts: Sequence[Start], submitted: float, now: float | None, is_running: bool, ends: Sequence[JobEnd] = ()
) -> list[TimeAccount]:
    """The account of each start with the wait before it, and of the wait since the last one, if there is one.

    submitted: first [POSIX time, s]. now: the time up to which to account; None: until the last start ended.
    is_running: whether the last start's ranks still run. ends: of jobs, as far as they have recorded them, in the order
    of time. Clocks of hosts may differ: no time counts twice.
    """
    accounts = []
    over = submitted
    for number, start in enumerate(starts):
        seconds = {name: start.seconds.get(name, 0.0) for name in ACTIVITIES}  # a later version may have others
        if is_running and now is not None and number == len(starts) - 1:
            ended = start.until
            activity = start.activity if start.activity in seconds else "starting"
            seconds[activity] += max(0.0, now - start.until)
            lost = 0.0
        else:
            lost = _take_lost(seconds, start, _resumed_from(starts, number))
            ended = _ended(starts, number, ends)
            seconds["starting"] += ended - start.until
        accounts.append(TimeAccount(**seconds, waiting=max(0.0, start.began - over), lost=lost))
        over = max(over, start.began) + ended - start.began
    if now is not None and now > over and not (is_running and starts):
        accounts.append(TimeAccount(waiting=now - over))
    return accounts


def _ended(starts: Sequence[Start], number: int, ends: Sequence[JobEnd]) -> float:
    """When the job of a start ended, between its last record and the next start; that record, if it is not known.

    A job that ended before its ranks were recorded has an end, too, which is no other start's.
    """
    start, following = starts[number], starts[number + 1 :]
    latest = following[0].began if following else math.inf
    own = (end.time for end in ends if start.job in (None, end.job))
    return next((ended for ended in own if start.until <= ended <= latest), start.until)


def _resumed_from(starts: Sequence[Start], number: int) -> int | None:
    """The fewest images that any later start resumed from; None after the last."""
    return min((start.images for start in starts[number + 1 :]), default=None)


def _take_lost(seconds: dict[str, float], start: Start, resumed_from: int | None) -> float:
    """Take from `seconds` what the start did after the last checkpoint that counts. Returns how much that is [s]."""
    marks = [mark for mark in start.marks if resumed_from is None or mark.images <= resumed_from]
    kept = marks[-1].seconds if marks else {}
    if seconds.get("training", 0.0) <= kept.get("training", 0.0):
        return 0.0
    lost = {name: seconds.get(name, 0.0) - kept.get(name, 0.0) for name in IN_VAIN}
    for name, value in lost.items():
        seconds[name] = seconds.get(name, 0.0) - value
    return sum(lost.values())
