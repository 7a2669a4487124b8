"""Finds ranks that all others wait for, from the heartbeats that they send anyway.

Ranks of a synchronous step take equally long for it, but the slow one does not wait: it is never found inside a
collective. Each heartbeat is a sample of where a main thread is, so that nothing is measured in the step itself. On a
GPU collectives are queued and the main thread does not wait in them: there this finds slow loading only.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import median_low

from hpc_recolor.training.watchdog.heartbeat import Heartbeat

# Samples of each rank, one a second, from which it is judged, and kept.
FEWEST, MOST = 60, 600
# A rank is slow if it works so much longer a step than the median rank, by more than chance (standard errors).
SLOWDOWN, CERTAINTY = 1.2, 5.0
# What ranks do in steps. In all other phases one rank may work while the others wait.
STEP_PHASES = ("training", "loading photographs", "agreeing")


class Stragglers:
    """What the main threads of all ranks were found at while they trained."""

    def __init__(self, ranks: int) -> None:
        self._samples = [deque[str | None](maxlen=MOST) for _ in range(ranks)]  # phases of work; None: it waited
        self._counts = [0] * ranks
        self._told: set[int] = set()

    def update(self, heartbeats: Iterable[Heartbeat]) -> None:
        """Count each new heartbeat once."""
        for beat in heartbeats:
            if beat.count != self._counts[beat.rank] and beat.phase in STEP_PHASES:
                waits = beat.in_collective or beat.phase == "agreeing"
                self._samples[beat.rank].append(None if waits else beat.phase)
            self._counts[beat.rank] = beat.count

    def find(self, heartbeats: Sequence[Heartbeat]) -> list[str]:
        """A line for each rank that is found to be slow, once: which, how much slower, in what phase.

        heartbeats: of all ranks.
        """
        fewest = min(map(len, self._samples))
        if len(heartbeats) < 2 or fewest < FEWEST:
            return []
        work = [1 - samples.count(None) / len(samples) for samples in self._samples]
        usual = median_low(work)  # of two ranks, the faster
        by_chance = CERTAINTY * (max(usual * (1 - usual), 1 / fewest) / fewest) ** 0.5
        slow = {rank for rank, share in enumerate(work) if share > max(SLOWDOWN * usual, usual + by_chance)}
        new = sorted(slow - self._told)
        self._told |= slow
        return [self._describe(heartbeats[rank], work[rank] / max(usual, 1 / fewest)) for rank in new]

    def _describe(self, beat: Heartbeat, factor: float) -> str:
        phase, _ = Counter(filter(None, self._samples[beat.rank])).most_common(1)[0]
        return (
            f"{beat.who} is slow: it works {factor:.1f} times as long a step as the median rank, mostly while {phase}, "
            "and the others wait for it; see what else runs on that host, or leave it out"
        )
