"""The order of samples: an endless stream of full shuffles, a pure function of (seed, images seen)."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Batch number -> sample numbers (n,), and flips (n, 2), each a pair (horizontal, vertical).
DrawBatch = Callable[[int], tuple[NDArray[np.int64], NDArray[np.bool_]]]

CROPS = 1  # with seed and epoch, seeds the stream of random crops


class SampleOrder:
    """The stream of samples of a run. Epoch after epoch, each a full shuffle; a batch may span two epochs.

    The order of an epoch, and the flips and the crop of a sample in it, depend on (seed, epoch, sample) alone, not on
    ranks or batches, so a run resumes anywhere, on any number of ranks, from one integer: the images seen.
    """

    def __init__(self, samples: int, seed: int) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: expected 1 or more")
        self.samples = samples
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._epoch_crops = lru_cache(maxsize=2)(self._draw_epoch_crops)

    def draw(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Positions start .. start + count of the stream: sample numbers (count,), and flips (count, 2), each a pair
        (horizontal, vertical)."""
        numbers = np.empty(count, np.int64)
        flips = np.empty((count, 2), np.bool_)
        for rows, epoch, positions in self._spans(start, count):
            shuffle, epoch_flips = self._epoch(epoch)
            numbers[rows] = shuffle[positions]
            flips[rows] = epoch_flips[numbers[rows]]
        return numbers, flips

    def draw_crops(self, start: int, count: int) -> NDArray[np.float32]:
        """Random crops of the samples at positions start .. start + count of the stream: (count, 3) in [0, 1), each a
        triple (size, left, top); see `data.crops`."""
        crops = np.empty((count, 3), np.float32)
        for rows, epoch, positions in self._spans(start, count):
            shuffle, _ = self._epoch(epoch)
            crops[rows] = self._epoch_crops(epoch)[shuffle[positions]]
        return crops

    def _spans(self, start: int, count: int) -> Iterator[tuple[slice, int, slice]]:
        """Positions start .. start + count, epoch by epoch: where among them, the epoch, and the positions in it."""
        done = 0
        while done < count:
            epoch, position = divmod(start + done, self.samples)
            take = min(count - done, self.samples - position)
            yield slice(done, done + take), epoch, slice(position, position + take)
            done += take

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        # Raw bits of PCG64 are the same in every version of NumPy (NEP 19); its `permutation` need not be.
        keys, bits = np.random.PCG64([self.seed, epoch]).random_raw((2, self.samples))
        return np.argsort(keys, kind="stable"), np.stack((bits >> 63, bits >> 62 & 1), axis=1).astype(np.bool_)

    def _draw_epoch_crops(self, epoch: int) -> NDArray[np.float32]:
        bits = np.random.PCG64([self.seed, epoch, CROPS]).random_raw((self.samples, 3))
        return (bits >> 40).astype(np.float32) * np.float32(2**-24)


def rank_slices(order: SampleOrder, images_seen: int, batch_size: int, rank: int, ranks: int) -> DrawBatch:
    """A rank's slices of the global batches that follow `images_seen`; batch_size is global and divisible by ranks."""
    local_size = batch_size // ranks
    assert local_size * ranks == batch_size

    def draw_batch(iteration: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return order.draw(images_seen + iteration * batch_size + rank * local_size, local_size)

    return draw_batch
