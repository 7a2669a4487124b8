"""A rank that dies, hangs or raises ends all ranks, with one line that names it.

Each rank has a thread that tells the others once a second how it stands, through a connection of its own to the store
that the ranks met in, and that looks at what they tell. Whoever finds a culprit first writes the verdict and prints it;
all who read it end at once, since their main threads may wait in a collective for good. A rank that SIGSTOP holds
cannot end itself: that is left to the launcher (torchrun sends SIGKILL 30 s after the first rank has ended).
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.exit_codes import FAILED
from hpc_recolor.runtime.process import machine_id
from hpc_recolor.training.watchdog.exit_status import Farewell, farewell_of
from hpc_recolor.training.watchdog.heartbeat import (
    PROMPT_S,
    Beat,
    Seen,
    State,
    accuse,
    process_letter,
    silence_line,
    whereabouts,
)

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BEAT_S = 1.0
# A thread that finds more time gone was itself held up, and has no right to call others late.
LONGEST_BEAT_S = 2 * BEAT_S
# So long rank 0, which may hold the store, waits until the others have read the verdict.
READ_S = 5.0
_entered = itertools.count()


class Watchdog:
    """While entered, the ranks watch each other; does nothing on one rank.

    hang_s: the run ends when no rank has changed its phase or step for so long. silence_s: a rank that gives no sign
    for so long is taken for dead. UserError, EarlyEndError, KeyboardInterrupt and SystemExit pass through it (of a
    RankError the other ranks end without a word, as this one speaks); any other error ends the process with FAILED.
    All ranks enter and leave it together.
    """

    def __init__(self, world: World, hang_s: float, silence_s: float) -> None:
        self.world, self.hang_s, self.silence_s = world, hang_s, silence_s
        self._main_thread = threading.get_ident()
        self._host = socket.gethostname()
        self._machine = machine_id()
        self._entry = ("starting", 0, 0)  # phase, step, and how many entries there were
        self._still_s, self._still_in = 0.0, 0
        self._count = 0
        self._farewell: Farewell | None = None
        self._ranks = [Seen(rank) for rank in range(world.size)]
        self._wake, self._over = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._last_s = time.monotonic()

    def enter(self, phase: str, step: int) -> None:
        """Say what the main thread does from here on, as in "rank 1 failed while `saving`, step 7"."""
        self._entry = (phase, step, self._entry[2] + 1)

    def __enter__(self) -> Self:
        if self.world.size > 1:
            self._store = _own_store()
            self._keys = [f"rank {rank}" for rank in range(self.world.size)]
            for key in (*self._keys, "verdict"):
                self._store.compare_set(key, "", "")  # makes it, if nobody has, since reading waits for keys
            for work in (self._watch, self._watch_store):
                threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world.size > 1:
            self._farewell = farewell_of(error)
            self._wake.set()
            self._over.wait()

    def _watch(self) -> None:
        try:
            while not self._round():
                self._wake.wait(BEAT_S)
                self._wake.clear()
        except RuntimeError:  # what torch raises of a store that is gone
            self._lose_store()
        self._over.set()

    def _round(self) -> bool:
        """One beat, and one look at the others. True once this rank is free to go."""
        left = self._farewell is not None and self._farewell.state is State.LEFT  # asked first, so that it is told
        verdict = self._exchange() or self._judge()
        if verdict:
            return self._follow(verdict)
        # The store may live in rank 0, and others would miss it.
        return left and (self.world.rank != 0 or all(seen.is_gone for seen in self._ranks[1:]))

    def _exchange(self) -> str:
        """Tell and hear. Returns the verdict, if there is one."""
        now_s = time.monotonic()
        elapsed_s, self._last_s = min(now_s - self._last_s, LONGEST_BEAT_S), now_s
        self._store.set(self._keys[self.world.rank], self._beat(elapsed_s).to_json())
        *beats, verdict = self._store.multi_get([*self._keys, "verdict"])
        for seen, beat in zip(self._ranks, beats, strict=True):
            seen.hear(beat, elapsed_s)
        return verdict.decode()

    def _beat(self, elapsed_s: float, ended: bool = False) -> Beat:
        phase, step, entries = self._entry
        self._still_s = self._still_s + elapsed_s if entries == self._still_in else 0.0
        self._still_in = entries
        self._count += 1
        waiting, place = whereabouts(self._main_thread)
        farewell = self._farewell or Farewell(State.RUNNING)
        return Beat(
            *(self.world.rank, self._host, self._machine, os.getpid(), self._count, phase, step, self._still_s),
            *(waiting, place, State.ENDED if ended else farewell.state, farewell.said),
        )

    def _judge(self) -> str:
        """Write a verdict if there is cause for one. Returns the one that holds."""
        line = self._own_failure() or accuse(self._ranks, self.silence_s, self.hang_s, self._machine)
        if not line:
            return ""
        verdict = json.dumps({"by": self.world.rank, "line": line})
        return self._store.compare_set("verdict", "", verdict).decode()

    def _own_failure(self) -> str | None:
        farewell = self._farewell
        if farewell is None or not (farewell.trace or farewell.quiet):
            return None
        beat = self._beat(0.0)
        return f"{beat.who} failed {beat.where}: {farewell.said}"

    def _follow(self, verdict: str) -> bool:
        """End as the verdict says, with its line if it is this rank's. Returns True if this rank says it later."""
        found = json.loads(verdict)
        mine = found["by"] == self.world.rank
        speaks_later = mine and self._farewell is not None and self._farewell.quiet
        if mine and not speaks_later:
            self._say(found["line"])
        self._store.set(self._keys[self.world.rank], self._beat(0.0, ended=True).to_json())
        if self.world.rank == 0:
            self._let_others_read()
        return speaks_later or self._end()

    def _let_others_read(self) -> None:
        until_s = time.monotonic() + READ_S
        absent = {seen.rank for seen in self._ranks if seen.silent_s >= min(PROMPT_S, self.silence_s)}
        while time.monotonic() < until_s:
            for seen, beat in zip(self._ranks, self._store.multi_get(self._keys), strict=True):
                seen.hear(beat, 0.0)
            if all(seen.is_gone or seen.rank in absent for seen in self._ranks[1:]):
                return
            time.sleep(BEAT_S / 10)

    def _watch_store(self) -> None:
        """A call to a store whose server is held never comes back, whatever its timeout."""
        silent_s, count, last_s = 0.0, self._count, time.monotonic()
        while not self._over.wait(BEAT_S):
            now_s = time.monotonic()
            silent_s = silent_s + min(now_s - last_s, LONGEST_BEAT_S) if count == self._count else 0.0
            count, last_s = self._count, now_s
            if silent_s >= self.silence_s:
                self._ranks[0].silent_s = silent_s
                self._lose_store()
                return

    def _lose_store(self) -> None:
        """The store is gone, and with it the way to agree on who speaks: one rank a machine does."""
        from torch.distributed import is_torchelastic_launched

        with self._ending:
            farewell = self._farewell or Farewell(State.RUNNING)
            if farewell.quiet or farewell.state is State.LEFT:
                self._over.set()
                return
            by_launcher = is_torchelastic_launched()
            beat = self._beat(0.0)
            if farewell.trace:
                self._say(f"{beat.who} failed {beat.where}: {farewell.said}")
            elif self._speaks_here(among=0 if by_launcher else 1):
                lost = (
                    f"the launcher's store no longer answers {beat.who} {beat.where} (torchrun or its machine is gone)"
                )
                self._say(lost if by_launcher else self._why_rank_0_is_silent())
            self._end()

    def _why_rank_0_is_silent(self) -> str:
        letter = process_letter(self._ranks[0].beat, self._machine) if self._ranks[0].beat else None
        return silence_line(self._ranks[0], letter if letter in ("X", "Z", "T") else None)

    def _speaks_here(self, among: int) -> bool:
        here = (
            seen.rank
            for seen in self._ranks[among:]
            if seen.beat and seen.beat.machine == self._machine and not seen.is_gone and seen.silent_s < PROMPT_S
        )
        return min(here, default=self.world.rank) >= self.world.rank

    def _say(self, line: str) -> None:
        trace = self._farewell.trace if self._farewell else ""
        text = f"{trace}error: {line}; what was committed stays, and the same command goes on from there\n"
        os.write(2, text.encode(errors="replace"))  # sys.stderr may be locked by the main thread

    def _end(self) -> NoReturn:
        flush = threading.Thread(target=lambda: (sys.stdout.flush(), sys.stderr.flush()), daemon=True)
        flush.start()
        flush.join(BEAT_S)
        os._exit(FAILED)


def _own_store() -> "Store":
    """A new connection to the store of the process group: one connection serves one call at a time."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore(f"watchdog {next(_entered)}", _get_default_store().clone())
