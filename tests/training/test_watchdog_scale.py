"""1,024 ranks in one process: real watchdogs without their threads, on a store in memory and a clock of the test's."""

from collections import Counter

import pytest
import torch

from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.watchdog.watchdog import HEARTBEAT_S, Watchdog

RANKS_PER_NODE = 8
HANG_S, SILENCE_S = 15.0, 10.0


class Store:
    """What the watchdogs use of torch's store. requests: values written and read, by rank."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.requests: Counter[int] = Counter()
        self.rank = 0

    def set(self, key: str, value: str) -> None:
        self.requests[self.rank] += 1
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.requests[self.rank] += len(keys)
        return [self.values[key] for key in keys]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self.requests[self.rank] += 1
        if self.values.get(key, b"").decode() == expected:
            self.values[key] = desired.encode()
        return self.values[key]


class Cluster:
    """Ranks that train in step, a second each. dead: those that send nothing any more."""

    def __init__(self, ranks: int) -> None:
        self.store, self.now_s = Store(), 0.0
        self.dead: set[int] = set()
        self.watchdogs = [self._start(rank, ranks) for rank in range(ranks)]

    def _start(self, rank: int, ranks: int) -> Watchdog:
        world = World(rank, ranks, rank % RANKS_PER_NODE, torch.device("cpu"))
        watchdog = Watchdog(world, HANG_S, SILENCE_S, clock=lambda: self.now_s)
        watchdog._machine = watchdog._host = f"node{rank // RANKS_PER_NODE}"
        self.store.rank = rank
        watchdog.connect(self.store)  # type: ignore[arg-type]
        return watchdog

    def run_round(self, step: int | None) -> list[str]:
        """All ranks enter the step, or stay where they are, and check. Returns the verdicts that they found."""
        self.now_s += HEARTBEAT_S
        found = []
        for rank, watchdog in enumerate(self.watchdogs):
            if rank not in self.dead:
                if step is not None:
                    watchdog.enter_phase("training", step)
                self.store.rank = rank
                found.append(watchdog.check())
        return list(filter(None, found))

    def verdict(self, seconds: int) -> str:
        """The verdict, if one comes while nothing moves any more."""
        return next((found[0] for _ in range(seconds) if (found := self.run_round(None))), "")


@pytest.fixture(scope="module")
def healthy() -> Cluster:
    cluster = Cluster(1024)
    assert not any(cluster.run_round(step) for step in range(3))
    return cluster


def test_traffic_grows_with_the_number_of_ranks_and_not_with_its_square(healthy: Cluster) -> None:
    per_round = {}
    for cluster in (Cluster(256), healthy):
        cluster.run_round(0)
        cluster.store.requests.clear()
        cluster.run_round(1)
        per_round[len(cluster.watchdogs)] = cluster.store.requests.total()
    assert per_round[1024] < 4.1 * per_round[256]
    assert per_round[1024] < 12 * 1024
    assert max(count for rank, count in healthy.store.requests.items() if rank > 1) <= RANKS_PER_NODE + 4


@pytest.mark.parametrize("dead", [1, 700])
def test_a_dead_rank_among_1024_is_named_in_time(dead: int) -> None:
    cluster = Cluster(1024)
    cluster.run_round(0)
    cluster.dead = {dead}
    verdict = cluster.verdict(int(SILENCE_S) + 2)
    assert f"rank {dead} on host node{dead // RANKS_PER_NODE} sent no heartbeat" in verdict


def test_if_both_observers_die_the_others_end_too() -> None:
    cluster = Cluster(64)
    cluster.run_round(0)
    cluster.dead = {0, 1}
    assert "rank 0 on host node0 sent no heartbeat" in cluster.verdict(int(SILENCE_S) + 8)


def test_if_rank_0_dies_rank_1_names_it() -> None:
    cluster = Cluster(64)
    cluster.run_round(0)
    cluster.dead = {0}
    verdict = cluster.verdict(int(SILENCE_S) + 2)
    assert '"by": 1' in verdict
    assert "rank 0 on host node0 sent no heartbeat" in verdict


def test_the_rank_that_has_not_come_to_a_collective_is_named_among_1024() -> None:
    cluster = Cluster(1024)
    cluster.run_round(0)
    for rank, watchdog in enumerate(cluster.watchdogs):
        watchdog.enter_phase("training" if rank != 600 else "loading photographs", 1 if rank != 600 else 0)
    assert "rank 600 on host node75 hangs while loading photographs, step 0" in cluster.verdict(int(HANG_S) + 3)


def test_nobody_is_accused_while_all_train(healthy: Cluster) -> None:
    assert not any(healthy.run_round(step) for step in range(3, 6))
