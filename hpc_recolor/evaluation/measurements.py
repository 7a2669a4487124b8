"""Images of all photographs, measured by method: gathered from all ranks in the photographs' order, and their means."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_recolor.data.batch import Batch
from hpc_recolor.evaluation.image_metrics import measure
from hpc_recolor.evaluation.perceptual import Perceptual, new_frechet
from hpc_recolor.evaluation.photographs import Photographs
from hpc_recolor.runtime.distributed import World, gather

BEST_AND_WORST = 20

# By method and metric: the value of each image, in the order of the photographs.
Values = dict[str, dict[str, list[float]]]


class MadeBatch(NamedTuple):
    """A batch before it is measured. images: by method, uint8 (N,H,W,3); values: by name, further values (N,)."""

    images: Mapping[str, Tensor]
    values: Mapping[str, Mapping[str, Tensor]]


class MeasuredBatch(NamedTuple):
    """A batch. values: by method and metric; features: whose Frechet distance is taken, by method and metric, and those
    of the originals, by metric."""

    values: Values
    features: dict[str, dict[str, NDArray[np.float32]]]
    original_features: dict[str, NDArray[np.float32]]


class KeptImage(NamedTuple):
    """An image to be shown, and its original: uint8 (H,W,3) on the CPU."""

    ciede2000: float
    image: Tensor
    original: Tensor


class Gallery:
    """The images of this rank that may be shown: the first ones, and BEST_AND_WORST from each end of the ranking."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.kept: dict[int, KeptImage] = {}

    def add(self, batch: Batch, images_u8_NHWC: Tensor, ciede2000: Tensor) -> None:
        """Add a batch, and drop the images that no longer qualify."""
        originals, images = batch.rgb_u8_NHWC.cpu(), images_u8_NHWC.cpu()
        for place, number in enumerate(batch.numbers.tolist()):
            self.kept[number] = KeptImage(
                ciede2000=float(ciede2000[place]), image=images[place].clone(), original=originals[place].clone()
            )
        shown = to_show({number: kept.ciede2000 for number, kept in self.kept.items()}, self.first)
        self.kept = {number: kept for number, kept in self.kept.items() if number in shown}


def to_show(ciede2000: Mapping[int, float], first: int) -> set[int]:
    """The numbers of the images that are kept: the first ones, and the best and worst by color difference."""
    ranked = sorted(ciede2000, key=lambda number: (ciede2000[number], number))
    return {n for n in ranked if n < first} | {*ranked[:BEST_AND_WORST], *ranked[-BEST_AND_WORST:]}


class Measurements:
    """The values of all images, the same on all ranks. Sums for Frechet distances are on rank 0 alone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.values: Values = {}
        self._frechet: dict[tuple[str, str], Any] = {}

    def add(self, measured: MeasuredBatch) -> None:
        """Append the next batch."""
        for method, metrics in measured.values.items():
            for metric, column in metrics.items():
                self.values.setdefault(method, {}).setdefault(metric, []).extend(column)
        if not self.world.is_main:
            return
        for method, by_metric in measured.features.items():
            for metric, features in by_metric.items():
                if (method, metric) not in self._frechet:
                    self._frechet[method, metric] = new_frechet(features.shape[1])
                of_originals = torch.from_numpy(measured.original_features[metric])
                self._frechet[method, metric].update(of_originals.double(), real=True)
                self._frechet[method, metric].update(torch.from_numpy(features).double(), real=False)

    def means(self, method: str) -> dict[str, float]:
        """The mean over the images of each of a method's metrics, summed in their order."""
        return {metric: sum(column) / len(column) for metric, column in self.values[method].items()}

    def frechet_distances(self, method: str) -> dict[str, float]:
        """FID and its like of a method against the originals, by metric, where they are measured; on rank 0."""
        return {metric: float(sums.compute()) for (of, metric), sums in self._frechet.items() if of == method}


def measure_all(
    photographs: Photographs,
    make: Callable[[Batch], MadeBatch],
    perceptual: Perceptual,
    task: str,
    gallery: Gallery | None = None,
) -> Measurements:
    """Make images of all photographs and measure them; all ranks together.

    task: what the progress bar says. gallery: keeps images of the method `model`.
    """
    measurements = Measurements(photographs.world)
    for measured in in_order(photographs, lambda batch: _measure(batch, make(batch), perceptual, gallery), task):
        measurements.add(measured)
    return measurements


def in_order(photographs: Photographs, of_batch: Callable[[Batch], Any], task: str) -> Iterator[Any]:
    """The result of every batch, in order, on all ranks, which call it together."""
    for batch in photographs.rounds(task):
        yield from (one for one in gather(photographs.world, of_batch(batch) if batch else None) if one is not None)


def _measure(batch: Batch, made: MadeBatch, perceptual: Perceptual, gallery: Gallery | None) -> MeasuredBatch:
    originals = batch.rgb_u8_NHWC
    columns = {name: dict(values) for name, values in made.values.items()}
    of_originals = perceptual.look(originals)
    features: dict[str, dict[str, NDArray[np.float32]]] = {}
    for method, images in made.images.items():
        looks = perceptual.look(images)
        features[method] = {metric: values.numpy() for metric, values in looks.features.items()}
        recognized = {key: (found == of_originals.classes[key]).double() for key, found in looks.classes.items()}
        columns[method] = measure(images, originals) | perceptual.distances(images, originals) | recognized
    if gallery:
        gallery.add(batch, made.images["model"], columns["model"]["ciede2000"])
    return MeasuredBatch(
        values={name: {metric: column.tolist() for metric, column in one.items()} for name, one in columns.items()},
        features=features,
        original_features={metric: values.numpy() for metric, values in of_originals.features.items()},
    )
