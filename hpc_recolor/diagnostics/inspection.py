"""One photograph or sample, decoded and measured."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_recolor.data.entries import Entry
from hpc_recolor.data.photo import SquareFit, UnfitPhotoError, colorfulness, to_square
from hpc_recolor.data.shards import PrepareOptions, ShardSamples
from hpc_recolor.diagnostics.findings import first_line

LIMITS = PrepareOptions()  # below its limits `prepare` leaves photographs out, by default


@dataclass(frozen=True)
class Inspection:
    """What was found in one photograph or sample.

    split: "" in a folder; problem: why it cannot be used, "kind: detail"; sides: as stored [pixels]; colorfulness,
    digest (SHA-256): of the prepared pixels.
    """

    name: str
    split: str = ""
    problem: str = ""
    sides: tuple[int, int] = (0, 0)
    colorfulness: float = 0.0
    digest: bytes = b""


def inspect_photo(entry: Entry) -> Inspection:
    """Decode and measure a photograph as `prepare` would with its default size and fit."""
    if entry.problem:
        return Inspection(name=entry.name, problem=entry.problem)
    try:
        return _inspect(entry.name, "", entry.read(), SquareFit(size=LIMITS.size, fit=LIMITS.fit))
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        return Inspection(name=entry.name, problem=f"unreadable: {reason}")


def inspect_sample(numbered: tuple[ShardSamples, int]) -> Inspection:
    """Decode and measure the sample with this number."""
    samples, number = numbered
    name, content, options = samples.name(number), samples.read(number), samples.options
    if samples.kind == "raw":
        return _measured(name, samples.split, (options.size, options.size), content)
    return _inspect(name, samples.split, content.tobytes(), SquareFit(size=options.size, fit=options.fit))


def _inspect(name: str, split: str, content: bytes, square: SquareFit) -> Inspection:
    try:
        pixels = to_square(content, square)
    except UnfitPhotoError as error:
        return Inspection(name=name, split=split, problem=str(error))
    with Image.open(io.BytesIO(content)) as photo:
        return _measured(name, split, photo.size, pixels)


def _measured(name: str, split: str, sides: tuple[int, int], pixels: NDArray[np.uint8]) -> Inspection:
    return Inspection(
        name=name,
        split=split,
        sides=sides,
        colorfulness=colorfulness(pixels),
        digest=hashlib.sha256(pixels.tobytes()).digest(),
    )
