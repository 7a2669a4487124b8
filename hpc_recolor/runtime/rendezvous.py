"""How ranks find each other before the first collective: a store in rank 0, and a key a rank.

torch's own rendezvous waits inside C++ for ranks that may never come: it names none of them, ends at no signal, and
fails if another program uses the port.
"""

import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from hpc_recolor.runtime.errors import RankError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Nodes may start minutes apart, as where each loads a container image first.
LIMIT_S = 600
NOTICE_S = 20
POLL_S = 0.05
# How long and how many characters a rank reads from a port that may be another program's.
ANSWER_S = 5
ANSWER_CHARACTERS = 200
# Of later waits for keys, while process groups are made; torch's own default.
STORE_TIMEOUT = timedelta(minutes=30)

# Below the kernel's range for outgoing connections, which begins at 32768.
FIRST_PORT, PORTS = 10_000, 22_000
CANDIDATES = 8


@dataclass(frozen=True)
class Meeting:
    """Which rank of how many meets the others where.

    address: of rank 0's machine. ports: in the order in which they are tried. job: tells the store from another job's.
    by_agent: torchrun holds the store, and not rank 0.
    """

    rank: int
    size: int
    address: str
    ports: tuple[int, ...]
    job: str
    by_agent: bool = False


def candidate_ports(job: str) -> tuple[int, ...]:
    """Ports that every rank of a job derives from its name, without communication."""
    return tuple(FIRST_PORT + zlib.crc32(f"{job} {number}".encode()) % PORTS for number in range(CANDIDATES))


class Wait:
    """A wait for other ranks, with a limit [s].

    check_stop: called again and again; what it raises ends the wait. speaks: whether this rank prints who is missing.
    """

    def __init__(self, check_stop: Callable[[], None], limit_s: float, speaks: bool) -> None:
        self._check_stop, self._limit_s, self._silent = check_stop, limit_s, not speaks
        self._start_s = time.monotonic()

    def pause(self, missing: str) -> None:
        """Sleep for a moment. Raises RankError once the limit is over. missing: the ranks waited for, and where."""
        self._check_stop()
        waited_s = time.monotonic() - self._start_s
        if waited_s >= self._limit_s:
            fix = "start all ranks, or unset RANK to train on one; see the logs of those that have ended"
            raise RankError("rendezvous", f"{missing} did not come within {self._limit_s:.0f} s", fix)
        if waited_s >= NOTICE_S and not self._silent:
            print(f"waiting for {missing}", file=sys.stderr, flush=True)
            self._silent = True
        threading.Event().wait(POLL_S)  # time.sleep fails under libfaketime 0.9.10, which tests set clocks with


def meet(meeting: Meeting, check_stop: Callable[[], None], limit_s: float = LIMIT_S) -> "Store":
    """The store that all ranks share, once all of them have come.

    check_stop: called while waiting; what it raises ends the wait. Raises RankError, with the ranks that are missing,
    after `limit_s`, and if no port is free.
    """
    wait = Wait(check_stop, limit_s, speaks=meeting.rank <= 1)
    with ExitStack() as stack:
        if meeting.by_agent:
            store = _agents_store(meeting)
        elif meeting.rank == 0:
            store = stack.enter_context(_announced(meeting))
        else:
            store = _find_store(meeting, wait)
        _await_all(meeting, store, wait)
    store.set_timeout(STORE_TIMEOUT)
    return store


def _await_all(meeting: Meeting, store: "Store", wait: Wait) -> None:
    store.set(f"rank {meeting.rank}", "")
    if meeting.rank == 0:
        # Rank 0 alone asks for every rank, so that requests grow with their number, not its square.
        missing = list(range(1, meeting.size))
        while missing := [rank for rank in missing if not store.check([f"rank {rank}"])]:
            wait.pause(f"{_name(missing)} of {meeting.size} at {meeting.address}")
        store.set("all", "")
    while not store.check(["all"]):
        wait.pause(f"other ranks of {meeting.size} at {meeting.address}")


@contextmanager
def _announced(meeting: Meeting) -> "Iterator[Store]":
    """A new store in this process, at a port that the kernel chooses, which a meeting port tells to whoever connects.

    A rank cannot connect to a store whose port may be another program's: torch's handshake has no timeout.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = _listen(meeting)
    store = TCPStore(meeting.address, 0, is_master=True, wait_for_workers=False)
    answer = f"{meeting.job}\n{store.port}\n".encode()

    def serve() -> None:
        with suppress(OSError):  # closed
            while True:
                with listener.accept()[0] as client:
                    client.sendall(answer)

    threading.Thread(target=serve, name="rendezvous", daemon=True).start()
    try:
        yield store
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends accept, which close alone does not
        listener.close()


def _listen(meeting: Meeting) -> socket.socket:
    for port in meeting.ports:
        with suppress(OSError):
            return socket.create_server(("", port), backlog=1024)
    ports = ", ".join(map(str, meeting.ports))
    raise RankError("rendezvous", f"every port of {ports} is taken on {meeting.address}", "set another MASTER_PORT")


def _find_store(meeting: Meeting, wait: Wait) -> "Store":
    """A connection to this job's store, once rank 0 announces it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    while True:
        for port in meeting.ports:
            with suppress(OSError, ValueError):  # nobody there, or another program
                job, store_port = _ask(meeting.address, port)
                if job == meeting.job:
                    store: Store = TCPStore(meeting.address, int(store_port), is_master=False, wait_for_workers=False)
                    return store
        wait.pause(f"rank 0 of {meeting.size} at {meeting.address}:{meeting.ports[0]}")


def _ask(address: str, port: int) -> list[str]:
    with socket.create_connection((address, port), ANSWER_S) as connection:
        return connection.makefile().read(ANSWER_CHARACTERS).splitlines()


def _agents_store(meeting: Meeting) -> "Store":
    """torchrun's own store, which may outlive ranks that it starts again."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(meeting.address, meeting.ports[0], is_master=False, wait_for_workers=False)
    attempts: Store = PrefixStore(f"attempt {meeting.job}", store)
    return attempts


def _name(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{' and others' if len(ranks) > 8 else ''}"
