"""What every rank tells the others once a second, and who is to blame when a run cannot go on."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from hpc_recolor.runtime.process import state_letter

# Why a rank is silent, by the state letter of its process.
SILENT_SINCE = {
    "X": "its process is gone: killed, perhaps for memory",
    "Z": "its process was killed, perhaps for memory",
    "T": "its process is stopped",
    "S": "its process lives, but its threads are stuck",
    "R": "its process lives, but its threads are stuck",
    "D": "its process waits for a disk",
}

# A rank that is proven dead, or silent while others have lost a connection, is not waited for longer.
PROMPT_S = 5.0


class State(StrEnum):
    """How a rank stands. CUT_OFF: a collective failed in it, most often because another rank is gone."""

    RUNNING = "running"
    CUT_OFF = "cut off"
    LEFT = "left"
    ENDED = "ended"


@dataclass(frozen=True)
class Beat:
    """What one rank says of itself. still_s: how long its main thread has been in this phase and step; waiting: in a
    collective, for others; place: the line of code it is at; machine: where `pid` counts; said: its error, if any."""

    rank: int
    host: str
    machine: str
    pid: int
    count: int
    phase: str
    step: int
    still_s: float
    waiting: bool
    place: str
    state: State = State.RUNNING
    said: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def who(self) -> str:
        return f"rank {self.rank} on host {self.host}"

    @property
    def where(self) -> str:
        return f"while {self.phase}, step {self.step}"


class Seen:
    """What this rank has heard from another. Its clocks stand still while this rank itself does, so that a job which
    was suspended as a whole accuses nobody when it goes on."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.beat: Beat | None = None
        self.silent_s = 0.0
        self.waited_s = 0.0  # since it was cut off, or left

    def hear(self, text: bytes, elapsed_s: float) -> None:
        """Take in the newest beat (empty: none yet), `elapsed_s` after the one before."""
        fields = json.loads(text) if text else None
        self.silent_s += elapsed_s
        if fields and (self.beat is None or fields["count"] != self.beat.count):
            self.beat = Beat(**fields | {"state": State(fields["state"])})
            self.silent_s = 0.0
        self.waited_s = 0.0 if self.runs else self.waited_s + elapsed_s

    @property
    def runs(self) -> bool:
        return self.state is State.RUNNING

    @property
    def state(self) -> State:
        return self.beat.state if self.beat else State.RUNNING

    @property
    def is_gone(self) -> bool:
        """Whether it has left or ended by its own word."""
        return self.state in (State.LEFT, State.ENDED)


def process_letter(beat: Beat, machine: str) -> str | None:
    """The state letter of proc_pid_stat(5) of a rank on `machine`, X if it is gone; None if it runs elsewhere."""
    return state_letter(beat.pid) if beat.machine == machine else None


def whereabouts(thread: int) -> tuple[bool, str]:
    """Whether a thread is inside a collective of torch, as far as Python sees it, and the line of code it is at."""
    frame = sys._current_frames().get(thread)
    place, waiting = "", False
    while frame:
        code = frame.f_code
        place = place or f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
        waiting = waiting or "/torch/distributed/" in code.co_filename
        frame = frame.f_back
    return waiting, place


def accuse(ranks: Sequence[Seen], silence_s: float, hang_s: float, machine: str) -> str | None:
    """One line that names who has ended the run, with host and phase; None while it may go on."""
    cut_off = [seen for seen in ranks if seen.state is State.CUT_OFF]
    silent = _silent(ranks, silence_s, bool(cut_off), machine)
    if silent:
        return silent
    if cut_off:
        return _left_or_cut_off(ranks, cut_off, silence_s)
    return _hanging([seen.beat for seen in ranks if seen.beat and seen.runs], hang_s)


def _silent(ranks: Sequence[Seen], silence_s: float, some_cut_off: bool, machine: str) -> str | None:
    for seen in sorted(ranks, key=lambda seen: -seen.silent_s):
        if seen.is_gone or seen.silent_s < min(PROMPT_S, silence_s):
            continue
        letter = process_letter(seen.beat, machine) if seen.beat else None
        dead, alive = letter in ("X", "Z"), letter not in (None, "X", "Z", "T")
        if seen.silent_s >= silence_s or dead or (some_cut_off and not alive):
            return silence_line(seen, letter)
    return None


def silence_line(seen: Seen, letter: str | None = None) -> str:
    """The line on a rank that no longer gives a sign; letter: see process_letter."""
    reason = SILENT_SINCE.get(letter or "", "killed, stopped, or its machine is gone")
    beat, after = seen.beat, f"no sign for {max(1.0, seen.silent_s):.0f} s"
    if not beat:
        return f"rank {seen.rank} gave {after} while starting ({reason})"
    return f"{beat.who} gave {after}, last seen {beat.where} ({reason})"


def _left_or_cut_off(ranks: Sequence[Seen], cut_off: list[Seen], silence_s: float) -> str | None:
    if all(seen.waited_s < PROMPT_S for seen in cut_off):
        return None  # who fails or falls silent in the meantime explains it better
    for seen in ranks:
        if seen.beat and seen.state is State.LEFT:
            return (
                f"{seen.beat.who} left before the others {seen.beat.where}{': ' * bool(seen.beat.said)}{seen.beat.said}"
            )
    first = max(cut_off, key=lambda seen: seen.waited_s)
    if first.waited_s < silence_s + PROMPT_S or not first.beat:
        return None
    own_error = f"{first.beat.who} failed {first.beat.where}: {first.beat.said}"
    if "timed out" in first.beat.said.lower():  # a collective's own limit was shorter than hang_s
        return _hanging([seen.beat for seen in ranks if seen.beat and seen.runs], silence_s) or own_error
    return own_error


def _hanging(running: list[Beat], hang_s: float) -> str | None:
    still_s = min((beat.still_s for beat in running), default=0.0)
    if still_s < hang_s:
        return None
    guilty = furthest_behind(running)
    if len(guilty) == 1:
        beat = guilty[0]
        return f"{beat.who} hangs {beat.where}, for {beat.still_s:.0f} s, at {beat.place}"
    names = ", ".join(f"{beat.rank} on host {beat.host}" for beat in guilty)
    return f"ranks {names} hang {guilty[0].where}, for {still_s:.0f} s, at {guilty[0].place}"


def furthest_behind(running: list[Beat]) -> list[Beat]:
    """Whom the others wait for: at the smallest step; of these, not in a collective; of these, in the phase that was
    entered first. More than one where nothing tells them apart."""
    behind = [beat for beat in running if beat.step == min(beat.step for beat in running)]
    behind = [beat for beat in behind if not beat.waiting] or behind
    oldest = max(behind, key=lambda beat: beat.still_s)
    return [beat for beat in behind if beat.phase == oldest.phase]
