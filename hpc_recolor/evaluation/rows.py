"""Measurements of many pictures, row by row: gathered from all ranks in the photographs' order, and their means."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_recolor.data.batch import Batch
from hpc_recolor.evaluation.image_metrics import measure
from hpc_recolor.evaluation.perceptual import Perceptual, new_fid
from hpc_recolor.evaluation.photographs import Photographs
from hpc_recolor.runtime.distributed import World, gather

BEST_AND_WORST = 20

# By name of a row: by name of a metric, each picture's value, in the order of the photographs.
Values = dict[str, dict[str, list[float]]]


class Made(NamedTuple):
    """What is measured of a batch. pictures: by row, uint8 (N,H,W,3); columns: by row and name, more values (N,)."""

    pictures: Mapping[str, Tensor]
    columns: Mapping[str, Mapping[str, Tensor]]


class Measured(NamedTuple):
    """A batch. values: by row and metric; features: what FID compares, by row, and those of the originals."""

    values: Values
    features: dict[str, NDArray[np.float32]]
    original_features: NDArray[np.float32] | None


class Kept(NamedTuple):
    """A picture to be shown, and its original: uint8 (H,W,3) on the CPU."""

    ciede2000: float
    picture: Tensor
    original: Tensor


class Gallery:
    """This rank's pictures that may be shown: the first ones, and so many of the best and the worst."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.kept: dict[int, Kept] = {}

    def add(self, batch: Batch, pictures_u8_NHWC: Tensor, ciede2000: Tensor) -> None:
        """Take in a batch, and let go of what others surpass."""
        originals, pictures = batch.rgb_u8_NHWC.cpu(), pictures_u8_NHWC.cpu()
        for place, number in enumerate(batch.numbers.tolist()):
            self.kept[number] = Kept(float(ciede2000[place]), pictures[place].clone(), originals[place].clone())
        shown = to_show({number: kept.ciede2000 for number, kept in self.kept.items()}, self.first)
        self.kept = {number: kept for number, kept in self.kept.items() if number in shown}


def to_show(ciede2000: Mapping[int, float], first: int) -> set[int]:
    """The numbers of the pictures that are kept, by their color difference."""
    ranked = sorted(ciede2000, key=lambda number: (ciede2000[number], number))
    return {n for n in ranked if n < first} | {*ranked[:BEST_AND_WORST], *ranked[-BEST_AND_WORST:]}


class Rows:
    """Values of all pictures, the same on all ranks; FID's sums are on rank 0 alone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.values: Values = {}
        self._fid: dict[str, Any] = {}

    def add(self, measured: Measured) -> None:
        """Take in the pictures that follow."""
        for row, metrics in measured.values.items():
            for metric, column in metrics.items():
                self.values.setdefault(row, {}).setdefault(metric, []).extend(column)
        if not self.world.is_main:
            return
        for row, found in measured.features.items():
            if row not in self._fid:
                self._fid[row] = new_fid(found.shape[1])
            self._fid[row].update(torch.from_numpy(measured.original_features).double(), real=True)
            self._fid[row].update(torch.from_numpy(found).double(), real=False)

    def means(self, row: str) -> dict[str, float]:
        """The mean over the pictures of each of a row's metrics, summed in their order."""
        return {metric: sum(column) / len(column) for metric, column in self.values[row].items()}

    def fid(self, row: str) -> dict[str, float]:
        """FID of a row against the originals, where it is measured; on rank 0."""
        return {"fid": float(self._fid[row].compute())} if row in self._fid else {}


def measure_rows(
    photographs: Photographs,
    make: Callable[[Batch], Made],
    perceptual: Perceptual,
    doing: str,
    gallery: Gallery | None = None,
) -> Rows:
    """Make pictures of all photographs and measure them; all ranks together. gallery: of the row `model`."""
    rows = Rows(photographs.world)
    for measured in in_order(photographs, lambda batch: _measure(batch, make(batch), perceptual, gallery), doing):
        rows.add(measured)
    return rows


def in_order(photographs: Photographs, of_batch: Callable[[Batch], Any], doing: str) -> Iterator[Any]:
    """What every batch gives, in order, on all ranks, which call it together."""
    for batch in photographs.rounds(doing):
        yield from (one for one in gather(photographs.world, of_batch(batch) if batch else None) if one is not None)


def _measure(batch: Batch, made: Made, perceptual: Perceptual, gallery: Gallery | None) -> Measured:
    originals = batch.rgb_u8_NHWC
    columns = {row: dict(more) for row, more in made.columns.items()}
    features: dict[str, NDArray[np.float32]] = {}
    for row, pictures in made.pictures.items():
        columns[row] = measure(pictures, originals) | perceptual.distances(pictures, originals)
        found = perceptual.features(pictures)
        if found is not None:
            features[row] = found.numpy()
    if gallery:
        gallery.add(batch, made.pictures["model"], columns["model"]["ciede2000"])
    of_originals = perceptual.features(originals)
    return Measured(
        {row: {metric: column.tolist() for metric, column in metrics.items()} for row, metrics in columns.items()},
        features,
        None if of_originals is None else of_originals.numpy(),
    )
