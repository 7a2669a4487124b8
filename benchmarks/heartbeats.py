"""`python -m benchmarks.heartbeats`: what the heartbeats of all ranks cost, by counts and by processor time.

On several ranks it measures real steps with and without them, in turn: torchrun --nproc_per_node 2 -m
benchmarks.heartbeats --model.width 16 --train.batch_size 4
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.runtime.distributed import world_size

app = cli.command("benchmarks.heartbeats", distributed=True)

RANKS = (2, 8, 64, 512)
RANKS_PER_NODE = 8
BEATS = 9
HANG_S, SILENCE_S = 900.0, 30.0  # as by default


@app.default
def heartbeats(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=2), help="Blocks of steps of each kind [2 or more].")] = 9,
    steps: Annotated[int, Parameter(validator=Number(gte=1), help="Steps in a block [steps, 1 or more].")] = 20,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Print counts for 2 to 512 ranks; on several ranks, the time of steps with heartbeats over that without."""
    lines = check_steps(cli.load(None, flags), rounds, steps) if world_size() > 1 else count_table()
    for line in lines:
        print(line)


@dataclass
class MemoryStore:
    """What watchdogs use of torch's store, with the requests and bytes of the rank that is asked about."""

    values: dict[str, bytes]
    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def set(self, key: str, value: str) -> None:
        """As of torch's store, like all others."""
        self._count(key, sent=value.encode())
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """One request for all keys."""
        found = [self.values[key] for key in keys]
        self._count("".join(keys), received=b"".join(found))
        return found

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Sets what is not there yet."""
        self._count(key, sent=desired.encode())
        return self.values.setdefault(key, desired.encode())

    def _count(self, keys: str, sent: bytes = b"", received: bytes = b"") -> None:
        self.requests += 1
        self.sent_bytes += len(keys) + len(sent)
        self.received_bytes += len(received)


def count_table() -> Iterator[str]:
    """For each number of ranks: requests and bytes of a beat, and the processor time of a rank for it, a line a kind
    of rank. Beats come once a second, so that milliseconds are thousandths of a thread."""
    yield "| ranks | of a beat | requests | kB sent | kB received | processor time, ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for ranks in RANKS:
        for name, rank in (("rank 0, which observes all", 0), ("the last rank", ranks - 1)):
            yield f"| {ranks} | {name} | {' | '.join(_beat(ranks, rank))} |"


def _beat(ranks: int, rank: int) -> Iterator[str]:
    """Requests, kB sent and received, and median processor time [ms] of a rank's beat among so many."""
    import torch

    from hpc_recolor.runtime.distributed import World
    from hpc_recolor.training.watchdog.watchdog import HEARTBEAT_S, Watchdog

    store, now_s = MemoryStore({}), [0.0]

    def watchdog_of(rank: int) -> Watchdog:
        world = World(rank, ranks, rank % RANKS_PER_NODE, torch.device("cpu"))
        watchdog = Watchdog(world, HANG_S, SILENCE_S, clock=lambda: now_s[0])
        watchdog.connect(store)  # type: ignore[arg-type]
        return watchdog

    watchdogs, taken_s = [watchdog_of(number) for number in range(ranks)], []
    for step in range(BEATS):
        now_s[0] += HEARTBEAT_S
        for other, watchdog in enumerate(watchdogs):
            watchdog.enter_phase("training", step)
            before = store.requests, store.sent_bytes, store.received_bytes
            started_s = time.process_time()
            watchdog.check()
            if other == 0:
                watchdog.find_stragglers()
            if other == rank:
                taken_s.append(time.process_time() - started_s)
                requests, sent, received = (
                    after - count
                    for after, count in zip(
                        (store.requests, store.sent_bytes, store.received_bytes), before, strict=True
                    )
                )
    yield f"{requests}"
    yield f"{sent / 1000:.2f}"
    yield f"{received / 1000:.2f}"
    yield f"{1000 * median(taken_s):.2f}"


def check_steps(config: Config, rounds: int, steps: int) -> list[str]:
    """Blocks of steps with heartbeats and without, in turn; lines for rank 0, none for others."""
    import torch

    from benchmarks.loop_step import LoopStep, random_images
    from hpc_recolor.runtime.distributed import start, stop
    from hpc_recolor.training.watchdog.watchdog import Watchdog

    world = start(config.train.device, config.train.threads)
    images, loop = random_images(config, world), LoopStep(config, world)
    clocks: dict[str, Callable[[], float]] = {"processor time": time.process_time, "the clock": time.perf_counter}
    times: dict[tuple[str, bool], list[float]] = {(name, on): [] for name in clocks for on in (False, True)}
    in_threads: list[float] = []

    def block(on: bool) -> dict[str, float]:
        watchdog: Any = Watchdog(world, HANG_S, SILENCE_S) if on else nullcontext()
        torch.distributed.barrier()
        with watchdog:
            began = {name: clock() for name, clock in clocks.items()}
            for step in range(steps):
                if on:
                    watchdog.enter_phase("training", step)
                loop(images)
            taken = {name: clock() - began[name] for name, clock in clocks.items()}
            if on:
                in_threads.append(_watchdog_s() / taken["the clock"])
            return {name: taken_s / steps for name, taken_s in taken.items()}

    for number in range(-1, rounds):
        for on in (False, True) if number % 2 else (True, False):
            for name, taken_s in block(on).items():
                if number >= 0:
                    times[name, on].append(taken_s)
    stop()
    if not world.is_main:
        return []
    first = (
        f"{world.size} ranks, width {config.model.width}, batch {config.train.batch_size}, "
        f"{rounds} blocks of {steps} steps with and without heartbeats:"
    )
    share = median(in_threads)
    last = (
        f"the threads of the heartbeats took {1000 * share:.2f} ms of a processor in a second by the clock: {share:.2%}"
    )
    return [first, *(_compare(name, times[name, True], times[name, False]) for name in clocks), last]


def _watchdog_s() -> float:
    """Processor time of the watchdog's threads so far [s]; schedstat counts in nanoseconds."""
    threads = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("watchdog")]
    return sum(int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _compare(name: str, on: list[float], off: list[float]) -> str:
    low, _, high = quantiles([one / other for one, other in zip(on, off, strict=True)], n=4)
    return (
        f"by {name} a step took {1000 * median(off):.1f} ms without and {1000 * median(on):.1f} ms with them: "
        f"{median(on) / median(off):.4f} (quartiles of the blocks in turn {low:.4f} to {high:.4f})"
    )


if __name__ == "__main__":
    sys.exit(cli.run(app))
