"""The sample order: a pure function, complete, and independent of batches and ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.data.order import SampleOrder, rank_slices
from tests.support import tolerances

SAMPLES = st.integers(1, 50)
SEEDS = st.integers(0, 2**32 - 1)


@given(SAMPLES, SEEDS, st.integers(0, 5))
def test_every_epoch_has_every_sample_once(samples: int, seed: int, epoch: int) -> None:
    numbers, _ = SampleOrder(samples, seed).draw(epoch * samples, samples)
    assert sorted(numbers) == list(range(samples))


@given(SAMPLES, SEEDS, st.integers(0, 200), st.lists(st.integers(0, 40), max_size=8))
def test_the_stream_is_the_same_however_it_is_cut(samples: int, seed: int, start: int, cuts: list[int]) -> None:
    whole = SampleOrder(samples, seed).draw(start, sum(cuts))
    order = SampleOrder(samples, seed)
    parts = [order.draw(start + sum(cuts[:number]), cut) for number, cut in enumerate(cuts)]
    for kind in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[kind] for part in parts] or [whole[kind]]), whole[kind])


@st.composite
def resumed_runs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A global batch size, and stretches of (ranks, steps) between stops: always two resumes or more."""
    batch_size = draw(st.integers(1, 6)) * draw(st.sampled_from((1, 2, 3, 4, 8, 12, 24)))
    ranks = st.sampled_from([ranks for ranks in (1, 2, 3, 4, 8) if batch_size % ranks == 0])
    return batch_size, draw(st.lists(st.tuples(ranks, st.integers(1, 9)), min_size=3, max_size=6))


@given(SAMPLES, SEEDS, resumed_runs())
def test_resumed_on_other_ranks_every_sample_still_comes_once_an_epoch(
    samples: int, seed: int, run: tuple[int, list[tuple[int, int]]]
) -> None:
    batch_size, stretches = run
    seen: list[int] = []
    flips: list[list[bool]] = []
    for ranks, steps in stretches:  # only the number of images seen is carried over
        slices = [rank_slices(SampleOrder(samples, seed), len(seen), batch_size, rank, ranks) for rank in range(ranks)]
        for step in range(steps):
            for draw in slices:
                numbers, flipped = draw(step)
                seen += numbers.tolist()
                flips += flipped.tolist()
    for start in range(0, len(seen) - samples + 1, samples):
        assert sorted(seen[start : start + samples]) == list(range(samples))
    rest = seen[len(seen) // samples * samples :]
    assert len(set(rest)) == len(rest)
    never_stopped, never_stopped_flips = SampleOrder(samples, seed).draw(0, len(seen))
    assert seen == never_stopped.tolist()
    assert flips == never_stopped_flips.tolist()


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder(100, 7)
    first, second = order.draw(0, 100), order.draw(100, 100)
    other = SampleOrder(100, 8).draw(0, 100)
    for kind in (0, 1):
        assert not np.array_equal(first[kind], second[kind])
        assert not np.array_equal(first[kind], other[kind])


def test_flips_are_fair_and_independent() -> None:
    _, flips = SampleOrder(10_000, 0).draw(0, 10_000)
    both = flips[:, 0] & flips[:, 1]
    assert np.abs(flips.mean(axis=0) - 0.5).max() < tolerances.FAIR_COIN
    assert abs(both.mean() - 0.25) < tolerances.FAIR_COIN


def test_the_order_of_a_seed_never_changes() -> None:
    """A run that resumes under a newer version must see each sample once per epoch."""
    numbers, flips = SampleOrder(8, 0).draw(6, 6)
    assert numbers.tolist() == [4, 5, 7, 4, 5, 1]
    assert flips.astype(int).tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 1], [1, 0]]
