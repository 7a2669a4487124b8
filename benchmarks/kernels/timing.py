"""Times functions on one device: all in turn, each over several sets of inputs, larger than the cache together.

Only GpuTimer depends on CUDA.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP_ROUNDS = 2
CACHES = 4  # the sets of inputs and results together are this many times the cache
MOST_SETS = 32

Block = Callable[[], object]


class Rotation:
    """A block of calls, one per set of inputs. Results are kept, so that each call writes to its own memory."""

    def __init__(self, side: Callable[..., object], sets: Sequence[tuple[Tensor, ...]]) -> None:
        self.side, self.sets = side, sets
        self.results: list[object] = [None] * len(sets)

    def __call__(self) -> None:
        """Call the side on each set of inputs."""
        for number, inputs in enumerate(self.sets):
            self.results[number] = self.side(*inputs)


class Timer(Protocol):
    """Times blocks of calls on a device."""

    device: torch.device
    name: str
    cache_bytes: int
    copy_bytes: int  # read and written by one copy of the baseline

    def time_us(self, block: Block) -> float:
        """How long a block takes, including the host's work if that is the bottleneck."""

    def graph_of(self, block: Block) -> Block | None:
        """The block in a CUDA graph, which launches without the host's work; None without CUDA."""

    def clean_up(self) -> None:
        """Free memory."""


class CpuTimer:
    """Wall time on the CPU."""

    device = torch.device("cpu")
    name = "CPU"
    cache_bytes = 0  # so that sets_for returns 2
    copy_bytes = 64 * 2**20

    def time_us(self, block: Block) -> float:
        """Wall time."""
        started_ns = time.perf_counter_ns()
        block()
        return (time.perf_counter_ns() - started_ns) / 1000

    def graph_of(self, block: Block) -> Block | None:
        """None: a CPU has no graphs."""
        return None

    def clean_up(self) -> None:
        """Collect garbage."""
        gc.collect()


class GpuTimer:
    """Device time on the current GPU, by CUDA events."""

    copy_bytes = 2**30

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.name, self.cache_bytes = properties.name, properties.L2_cache_size
        self._other_data = torch.ones(CACHES * self.cache_bytes // 4, device=self.device)
        self._failed_capture = False
        gc.freeze()  # garbage is collected often from here on; skip all that is imported

    def time_us(self, block: Block) -> float:
        """Device time from before the first call to after the last.

        Reading other data first evicts what the block reads from the cache, and keeps the device busy while the host
        queues the first calls; calls that launch more slowly than they run still show the host's time.
        """
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        self._other_data.sum()
        start.record()
        block()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end) * 1000)

    def graph_of(self, block: Block) -> Block | None:
        """Captured after a warm-up on a side stream, as `torch.cuda.graph` requires.

        Before torch 2.12 a failed capture leaves the allocator in a state where neither another capture nor
        `empty_cache` works (pytorch/pytorch#180395), so the first failure is the last attempt.
        """
        if self._failed_capture:
            raise RuntimeError("an earlier capture failed")
        side_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side_stream):
            block()
        torch.cuda.current_stream(self.device).wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        self._failed_capture = True
        with torch.cuda.graph(graph):
            block()
        self._failed_capture = False
        return graph.replay

    def clean_up(self) -> None:
        """Collect garbage and, unless a capture failed, return cached memory to the device."""
        gc.collect()
        if not self._failed_capture:
            torch.cuda.empty_cache()


def find_timer() -> Timer:
    """For the GPU, if there is one, else for the CPU."""
    return GpuTimer() if torch.cuda.is_available() else CpuTimer()


def sets_for(least_bytes: int, timer: Timer) -> int:
    """How many sets of inputs exceed the cache; at most MOST_SETS, since the cache is emptied before each block."""
    return min(max(2, -(-CACHES * timer.cache_bytes // max(1, least_bytes))), MOST_SETS)


def copies(moved_bytes: int, sets: int, device: torch.device) -> Rotation:
    """Copies that read and write moved_bytes together, half each."""
    buffers = [
        tuple(torch.randint(0, 256, (moved_bytes // 2,), dtype=torch.uint8, device=device) for _ in range(2))
        for _ in range(sets)
    ]
    return Rotation(lambda source, target: target.copy_(source), buffers)


def time_in_turn(blocks: Mapping[Any, Block], timer: Timer, rounds: int) -> dict[Any, list[float]]:
    """Times [us] of all blocks, once per round, each round in another order, since a block affects the next one."""
    times: dict[Any, list[float]] = {name: [] for name in blocks}
    order = random.Random(0)
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name in order.sample(list(blocks), len(blocks)):
            elapsed_us = timer.time_us(blocks[name])
            if number >= 0:
                times[name].append(elapsed_us)
    return times


def report_progress(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)
