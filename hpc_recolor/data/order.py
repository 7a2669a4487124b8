"""The order of samples: an endless stream of full shuffles, a pure function of (seed, images seen)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Batch number -> sample numbers (n,), and flips (n, 2), each a pair (horizontal, vertical).
DrawBatch = Callable[[int], tuple[NDArray[np.int64], NDArray[np.bool_]]]


class SampleOrder:
    """The stream of samples of a run. Epoch after epoch, each a full shuffle; a batch may span two epochs.

    The order of an epoch and the flips of a sample in it depend on (seed, epoch, sample) alone, not on ranks or
    batches, so a run resumes anywhere, on any number of ranks, from one integer: the images seen.
    """

    def __init__(self, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: expected 1 or more")
        self.samples = samples
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def draw(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Positions start .. start + count of the stream: sample numbers (count,), and flips (count, 2), each a pair
        (horizontal, vertical)."""
        numbers = np.empty(count, np.int64)
        flips = np.empty((count, 2), np.bool_)
        done = 0
        while done < count:
            epoch, position = divmod(start + done, self.samples)
            take = min(count - done, self.samples - position)
            shuffle, epoch_flips = self._epoch(epoch)
            chosen = shuffle[position : position + take]
            numbers[done : done + take] = chosen
            flips[done : done + take] = epoch_flips[chosen]
            done += take
        return numbers, flips

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        # Raw bits of PCG64 are the same in every version of NumPy (NEP 19); its `permutation` need not be.
        keys, bits = np.random.PCG64([self.seed, epoch]).random_raw((2, self.samples))
        return np.argsort(keys, kind="stable"), np.stack((bits >> 63, bits >> 62 & 1), axis=1).astype(np.bool_)


def rank_slices(order: SampleOrder, images_seen: int, batch_size: int, rank: int, ranks: int) -> DrawBatch:
    """A rank's slices of the global batches that follow `images_seen`; batch_size is global and divisible by ranks."""
    local_size = batch_size // ranks
    assert local_size * ranks == batch_size

    def draw_batch(iteration: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return order.draw(images_seen + iteration * batch_size + rank * local_size, local_size)

    return draw_batch
