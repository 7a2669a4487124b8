"""A rank that dies, hangs or raises ends all ranks, with one line that names it.

Each rank has a thread that sends a heartbeat once a second, through a connection of its own to the store of the process
group. Two observers read those of all ranks, the others those of the observers and of ranks on their own machine, so
that traffic grows with the number of ranks and not with its square. The first that finds a culprit writes the verdict
and prints it; all that read it exit at once, since their main threads may wait in a collective for good. A rank that
SIGSTOP holds cannot exit: that is left to the launcher (torchrun sends SIGKILL 30 s after the first rank has ended).
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.exit_codes import FAILED
from hpc_recolor.runtime.process import machine_id
from hpc_recolor.training.watchdog.culprit import PROMPT_S, describe_silence, find_culprit, process_letter
from hpc_recolor.training.watchdog.exit_status import ExitStatus, exit_status_of
from hpc_recolor.training.watchdog.heartbeat import Heartbeat, PeerStatus, RankState, describe_place, locate_thread
from hpc_recolor.training.watchdog.stragglers import Stragglers

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# (phase, step): reports what the main thread does from here on, as in "rank 1 failed while `saving`, step 7".
EnterPhase = Callable[[str, int], None]

HEARTBEAT_S = 1.0
# A thread that finds more time passed was itself held up, and must not call others late.
LONGEST_ROUND_S = 2 * HEARTBEAT_S
# Rank 0, which may host the store, waits this long until the others have read the verdict.
READ_S = 5.0
# Rank 0, and rank 1 in case it is rank 0 that dies. The others judge only if both of them are silent.
OBSERVERS = 2
_entered = itertools.count()


class Watchdog:
    """While entered, the ranks watch each other; does nothing on one rank.

    hang_s: the run ends when no rank has changed its phase or step for this long. silence_s: a rank without heartbeats
    for this long is taken for dead. UserError, EarlyEndError, KeyboardInterrupt and SystemExit pass through it (on a
    RankError the other ranks exit silently, as this one reports it); any other error ends the process with FAILED.
    All ranks enter and leave it together. clock: returns the time [s]. before_exit: called before a verdict ends the
    process, in another thread than the main one.
    """

    def __init__(
        self,
        world: World,
        hang_s: float,
        silence_s: float,
        clock: Callable[[], float] = time.monotonic,
        before_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_exit = before_exit
        self.world, self.hang_s, self.silence_s, self._clock = world, hang_s, silence_s, clock
        self._main_thread = threading.get_ident()
        self._host = socket.gethostname()
        self._machine = machine_id()
        self._entry = ("starting", 0, 0)  # phase, step, and number of entries so far
        self._still_s, self._still_in = 0.0, 0
        self._count = 0
        self._exit_status: ExitStatus | None = None
        self._stragglers = Stragglers(world.size if world.is_main else 0)
        self._peers = {rank: PeerStatus(rank) for rank in ranks_read_by(world)}
        self._wake, self._over = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._last_s = clock()

    def enter_phase(self, phase: str, step: int) -> None:
        """See EnterPhase."""
        self._entry = (phase, step, self._entry[2] + 1)

    @property
    def where(self) -> str:
        """Phase and step of the main thread, for messages."""
        phase, step, _ = self._entry
        return describe_place(phase, step)

    def __enter__(self) -> Self:
        if self.world.size > 1:
            self.connect(_own_store())
            for work in (self._watch, self._watch_store):
                threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()
        return self

    def connect(self, store: "Store") -> None:
        """Use this store from here on."""
        self._store = store
        for key in (*self._keys, "verdict"):
            self._store.compare_set(key, "", "")  # creates it, unless it is there, since reading waits for keys

    @property
    def _keys(self) -> list[str]:
        return [peer.key for peer in self._peers.values()]

    @property
    def _others(self) -> list[PeerStatus]:
        """On rank 0: all ranks but this one."""
        return list(self._peers.values())[1:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world.size > 1:
            self._exit_status = exit_status_of(error)
            self._wake.set()
            self._over.wait()

    def _watch(self) -> None:
        try:
            while not self._run_round():
                self._wake.wait(HEARTBEAT_S)
                self._wake.clear()
        except RuntimeError:  # what torch raises if the store is gone
            self._handle_lost_store()
        self._over.set()

    def _run_round(self) -> bool:
        """Send a heartbeat and check the others. True once this rank may leave."""
        # Read before the exchange, so that the others receive the state.
        left = self._exit_status is not None and self._exit_status.state is RankState.LEFT
        verdict = self.check()
        if verdict:
            return self._obey(verdict)
        if self.world.is_main:
            for line in self.find_stragglers():
                _write_to_stderr(f"WARNING: {line}\n")
        # The store may live in rank 0, and others would miss it.
        return left and (self.world.rank != 0 or all(peer.has_left for peer in self._others))

    def check(self) -> str:
        """Send a heartbeat, and look at those of others. Returns the verdict on the run, empty while there is none."""
        return self._exchange() or self._reach_verdict()

    def find_stragglers(self) -> list[str]:
        """On rank 0, after `check`: a line for each rank that is newly found to be slow."""
        heartbeats = [peer.heartbeat for peer in self._peers.values() if peer.heartbeat]
        if len(heartbeats) < self.world.size:
            return []
        self._stragglers.update(heartbeats)
        return self._stragglers.find(heartbeats)

    def _exchange(self) -> str:
        """Send and receive heartbeats. Returns the verdict, empty if there is none."""
        now_s = self._clock()
        elapsed_s, self._last_s = min(now_s - self._last_s, LONGEST_ROUND_S), now_s
        self._store.set(self._peers[self.world.rank].key, self._make_heartbeat(elapsed_s).to_json())
        *heartbeats, verdict = self._store.multi_get([*self._keys, "verdict"])
        for peer, heartbeat in zip(self._peers.values(), heartbeats, strict=True):
            peer.update(heartbeat, elapsed_s)
        return verdict.decode()

    def _make_heartbeat(self, elapsed_s: float, exiting: bool = False) -> Heartbeat:
        phase, step, entries = self._entry
        self._still_s = self._still_s + elapsed_s if entries == self._still_in else 0.0
        self._still_in = entries
        self._count += 1
        in_collective, code_line = locate_thread(self._main_thread)
        status = self._exit_status or ExitStatus(RankState.RUNNING)
        return Heartbeat(
            rank=self.world.rank,
            host=self._host,
            machine=self._machine,
            pid=os.getpid(),
            count=self._count,
            phase=phase,
            step=step,
            still_s=self._still_s,
            in_collective=in_collective,
            code_line=code_line,
            state=RankState.EXITING if exiting else status.state,
            error=status.error,
        )

    def _reach_verdict(self) -> str:
        """Write a verdict if a rank is at fault. Returns the one that holds, empty if there is none."""
        line = self._own_failure() or self._find_culprit()
        if not line:
            return ""
        verdict = json.dumps({"by": self.world.rank, "line": line})
        return self._store.compare_set("verdict", "", verdict).decode()

    def _find_culprit(self) -> str | None:
        if self.world.rank < OBSERVERS:
            peers = list(self._peers.values())
            return find_culprit(peers, silence_s=self.silence_s, hang_s=self.hang_s, machine=self._machine)
        if all(self._peers[rank].silent_s >= self.silence_s + PROMPT_S for rank in range(OBSERVERS)):
            return self._describe_silent_rank_0()
        return None

    def _own_failure(self) -> str | None:
        status = self._exit_status
        if status is None or not (status.traceback or status.reports_itself):
            return None
        heartbeat = self._make_heartbeat(0.0)
        return f"{heartbeat.who} failed {heartbeat.where}: {status.error}"

    def _obey(self, verdict: str) -> bool:
        """Exit, after printing the verdict if it is this rank's. Returns True if its command is to print it instead."""
        found = json.loads(verdict)
        mine = found["by"] == self.world.rank
        reports_itself = mine and self._exit_status is not None and self._exit_status.reports_itself
        if mine and not reports_itself:
            self._print(found["line"])
        self._store.set(self._peers[self.world.rank].key, self._make_heartbeat(0.0, exiting=True).to_json())
        if self.world.rank == 0:
            self._wait_for_readers()
        return reports_itself or self._exit()

    def _wait_for_readers(self) -> None:
        until_s, keys = time.monotonic() + READ_S, self._keys
        absent = {peer.rank for peer in self._others if peer.silent_s >= min(PROMPT_S, self.silence_s)}
        while time.monotonic() < until_s:
            for peer, heartbeat in zip(self._peers.values(), self._store.multi_get(keys), strict=True):
                peer.update(heartbeat, 0.0)
            if all(peer.has_left or peer.rank in absent for peer in self._others):
                return
            threading.Event().wait(HEARTBEAT_S / 10)  # see rendezvous: time.sleep fails where tests set the clock

    def _watch_store(self) -> None:
        """Notice a store whose host is stopped: a call to it never returns, whatever its timeout."""
        silent_s, count, last_s = 0.0, self._count, time.monotonic()
        while not self._over.wait(HEARTBEAT_S):
            now_s = time.monotonic()
            silent_s = silent_s + min(now_s - last_s, LONGEST_ROUND_S) if count == self._count else 0.0
            count, last_s = self._count, now_s
            if silent_s >= self.silence_s:
                self._peers[0].silent_s = silent_s
                self._handle_lost_store()
                return

    def _handle_lost_store(self) -> None:
        """Exit without the store, through which ranks agree on who reports: one rank per machine does."""
        from torch.distributed import is_torchelastic_launched

        with self._ending:
            status = self._exit_status or ExitStatus(RankState.RUNNING)
            if status.reports_itself or status.state is RankState.LEFT:
                self._over.set()
                return
            by_launcher = is_torchelastic_launched()
            heartbeat = self._make_heartbeat(0.0)
            if status.traceback:
                self._print(f"{heartbeat.who} failed {heartbeat.where}: {status.error}")
            elif self._reports_for_machine(first_rank=0 if by_launcher else 1):
                lost = (
                    f"the launcher's store no longer responds to {heartbeat.who} {heartbeat.where} "
                    "(torchrun or its machine is gone)"
                )
                self._print(lost if by_launcher else self._describe_silent_rank_0())
            self._exit()

    def _describe_silent_rank_0(self) -> str:
        rank_0 = self._peers[0]
        letter = process_letter(rank_0.heartbeat, self._machine) if rank_0.heartbeat else None
        return describe_silence(rank_0, letter if letter in ("X", "Z", "T") else None)

    def _reports_for_machine(self, first_rank: int) -> bool:
        """Whether this rank is the lowest one on its machine, from `first_rank` on, that still sends heartbeats."""
        here = (
            peer.rank
            for peer in self._peers.values()
            if peer.rank >= first_rank
            and peer.heartbeat
            and peer.heartbeat.machine == self._machine
            and not peer.has_left
            and peer.silent_s < PROMPT_S
        )
        return min(here, default=self.world.rank) >= self.world.rank

    def _print(self, line: str) -> None:
        trace = self._exit_status.traceback if self._exit_status else ""
        text = f"{trace}error: {line}; committed checkpoints are kept, and the same command continues from there\n"
        _write_to_stderr(text)

    def _exit(self) -> NoReturn:
        last_acts = (self._before_exit, sys.stdout.flush, sys.stderr.flush)
        flush = threading.Thread(target=lambda: [act() for act in last_acts], daemon=True)
        flush.start()
        flush.join(HEARTBEAT_S)
        os._exit(FAILED)


def _write_to_stderr(text: str) -> None:
    """As sys.stderr may be locked by the main thread. A full disk, or a reader that has gone, ends no watchdog."""
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def ranks_read_by(world: World) -> list[int]:
    """The ranks whose heartbeats a rank reads: all, if it is an observer."""
    if world.rank < OBSERVERS:
        return list(range(world.size))
    here = range(max(world.rank - world.local_rank, OBSERVERS), world.rank + 1)
    return [*range(OBSERVERS), *here]


def _own_store() -> "Store":
    """A new connection to the store of the process group: one connection serves one call at a time."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore(f"watchdog {next(_entered)}", _get_default_store().clone())
