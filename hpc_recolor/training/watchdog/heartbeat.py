"""What every rank reports to the others once a second, and what it knows about them."""

import json
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class RankState(StrEnum):
    """The state of a rank's main thread.

    DISCONNECTED: a collective failed in it, most often because another rank is gone. LEFT: it has left the watchdog,
    finished or with an error that its command reports. EXITING: it ends because of a verdict.
    """

    RUNNING = "running"
    DISCONNECTED = "disconnected"
    LEFT = "left"
    EXITING = "exiting"


@dataclass(frozen=True)
class Heartbeat:
    """What one rank reports of itself.

    machine: the boot and PID namespace in which `pid` is unique. count: number of this heartbeat. still_s: time that
    the main thread has been in this phase and step [s]. in_collective: whether it is inside a collective of torch.
    code_line: where it is. error: what it failed with, if anything.
    """

    rank: int
    host: str
    machine: str
    pid: int
    count: int
    phase: str
    step: int
    still_s: float
    in_collective: bool
    code_line: str
    state: RankState = RankState.RUNNING
    error: str = ""

    def to_json(self) -> str:
        """This heartbeat as JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Heartbeat":
        """A heartbeat as `to_json` wrote it."""
        fields = json.loads(text)
        return cls(**fields | {"state": RankState(fields["state"])})

    @property
    def who(self) -> str:
        """Rank and host, for messages."""
        return f"rank {self.rank} on host {self.host}"

    @property
    def where(self) -> str:
        """Phase and step, for messages."""
        return describe_place(self.phase, self.step)


class PeerStatus:
    """What this rank knows about another, or about itself.

    key: of its heartbeat in the store. heartbeat: the newest, None before the first. silent_s: time since it came [s].
    not_running_s: time since its state is another than RUNNING [s]. Both advance only while this rank itself runs, so
    that a job that was suspended as a whole blames nobody when it resumes.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.key = f"rank {rank}"  # in the store
        self.heartbeat: Heartbeat | None = None
        self.silent_s = 0.0
        self.not_running_s = 0.0

    def update(self, text: bytes, elapsed_s: float) -> None:
        """Store the newest heartbeat (as JSON; empty: none yet), `elapsed_s` after the last update."""
        newest = Heartbeat.from_json(text) if text else None
        self.silent_s += elapsed_s
        if newest and (self.heartbeat is None or newest.count != self.heartbeat.count):
            self.heartbeat = newest
            self.silent_s = 0.0
        self.not_running_s = 0.0 if self.is_running else self.not_running_s + elapsed_s

    @property
    def state(self) -> RankState:
        """The state in its newest heartbeat; RUNNING before the first."""
        return self.heartbeat.state if self.heartbeat else RankState.RUNNING

    @property
    def is_running(self) -> bool:
        """Whether its state is RUNNING."""
        return self.state is RankState.RUNNING

    @property
    def has_left(self) -> bool:
        """Whether it reported that it leaves or exits."""
        return self.state in (RankState.LEFT, RankState.EXITING)


def describe_place(phase: str, step: int) -> str:
    """Phase and step, for messages."""
    return f"while {phase}, step {step}"


def locate_thread(thread: int) -> tuple[bool, str]:
    """Whether a thread is inside a collective of torch, as far as Python sees it, and the line of code it is at."""
    frame = sys._current_frames().get(thread)
    code_line, in_collective = "", False
    while frame:
        code = frame.f_code
        code_line = code_line or f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
        in_collective = in_collective or "/torch/distributed/" in code.co_filename
        frame = frame.f_back
    return in_collective, code_line
