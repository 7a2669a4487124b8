"""A slow rank is found from heartbeats alone, and no other is accused."""

import random
from collections.abc import Callable

import pytest

from hpc_recolor.training.watchdog.heartbeat import Heartbeat
from hpc_recolor.training.watchdog.stragglers import FEWEST, Stragglers
from tests.support.tolerances import STRAGGLER

LOADING_SHARE = 0.2


def heartbeat(rank: int, count: int, phase: str, in_collective: bool) -> Heartbeat:
    return Heartbeat(rank, f"node{rank}", "machine", 1, count, phase, count, 0.0, in_collective, "")


def sampled(own_s: list[float], loads: Callable[[int], float], draw: random.Random, count: int) -> list[Heartbeat]:
    """A heartbeat of each rank at a random moment of a step that lasts as long as the slowest rank works [s]."""
    beats = []
    for rank, work_s in enumerate(own_s):
        moment_s = draw.uniform(0.0, max(own_s))
        phase = "loading photographs" if moment_s < work_s * loads(rank) else "training"
        beats.append(heartbeat(rank, count, phase, in_collective=moment_s >= work_s))
    return beats


def found(own_s: list[float], seconds: int, seed: int, loads: Callable[[int], float] | None = None) -> list[str]:
    """The lines after so many seconds of training, of ranks that work so long a step."""
    draw, stragglers, lines = random.Random(seed), Stragglers(len(own_s)), []
    for count in range(1, seconds + 1):
        beats = sampled(own_s, loads or (lambda rank: LOADING_SHARE), draw, count)
        stragglers.update(beats)
        lines += stragglers.find(beats)
    return lines


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize("slower", [1.5, 3.0, 20.0])
def test_a_slow_rank_is_found_and_named_once(ranks: int, slower: float) -> None:
    own_s = [1.0] * ranks
    own_s[1] = slower
    (line,) = found(own_s, 600, seed=ranks)
    assert line.startswith("rank 1 on host node1 is slow: it works ")
    factor = float(line.split("works ")[1].split()[0])
    assert factor == pytest.approx(slower, rel=STRAGGLER)


def test_a_very_slow_rank_is_found_in_little_more_than_a_minute() -> None:
    assert found([1.0, 1.0, 1.0, 10.0], FEWEST, seed=1)


def test_the_phase_in_which_it_is_slow_is_named() -> None:
    (line,) = found([1.0, 1.0, 1.0, 3.0], 300, seed=1, loads=lambda rank: 0.9 if rank == 3 else 0.1)
    assert "mostly while loading photographs" in line


@pytest.mark.parametrize("seed", range(20))
def test_ranks_that_are_equally_fast_are_not_accused(seed: int) -> None:
    draw = random.Random(seed)
    own_s = [draw.uniform(1.0, 1.05) for _ in range(32)]
    assert found(own_s, 300, seed) == []


def test_what_one_rank_does_alone_is_no_slowness() -> None:
    stragglers = Stragglers(2)
    for count in range(1, 300):
        beats = [heartbeat(0, count, "saving", False), heartbeat(1, count, "saving", True)]
        stragglers.update(beats)
        assert not stragglers.find(beats)


def test_a_heartbeat_that_is_read_twice_counts_once() -> None:
    stragglers = Stragglers(2)
    for _ in range(300):
        beats = [heartbeat(0, 1, "training", False), heartbeat(1, 1, "training", True)]
        stragglers.update(beats)
        assert not stragglers.find(beats)
