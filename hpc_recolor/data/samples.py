"""What a run learns from or is measured on: samples by number, read from photographs or from shards."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpc_recolor.data.entries import read_file
from hpc_recolor.data.photo import UnfitPhotoError
from hpc_recolor.runtime.errors import RankError

# photo: a file of any size; jpeg: already of the run's size; raw: pixels of that size.
SampleKind = Literal["photo", "jpeg", "raw"]


class Samples(Protocol):
    """A numbered, unchanging list of samples."""

    @property
    def kind(self) -> SampleKind:
        """What `read` returns."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> NDArray[np.uint8]:
        """A sample: bytes of an image file (n,), or raw RGB pixels (size, size, 3). Raises OSError."""

    def name(self, number: int) -> str:
        """What the user knows it by."""


class PhotoFiles:
    """Photographs as they are."""

    kind: SampleKind = "photo"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> NDArray[np.uint8]:
        return np.frombuffer(read_file(self.paths[number]), np.uint8)

    def name(self, number: int) -> str:
        return str(self.paths[number])


class Subset:
    """Some of other samples, in the order of `numbers`."""

    def __init__(self, samples: Samples, numbers: Sequence[int]) -> None:
        self.samples, self.numbers = samples, numbers

    @property
    def kind(self) -> SampleKind:
        return self.samples.kind

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, number: int) -> NDArray[np.uint8]:
        return self.samples.read(self.numbers[number])

    def name(self, number: int) -> str:
        return self.samples.name(self.numbers[number])


Content = TypeVar("Content")


class SampleReader:
    """Samples that turned out unreadable while a run used them. Each is named when it is first met, and counted."""

    def __init__(self, samples: Samples, max_share: float) -> None:
        self.samples, self.max_share = samples, max_share
        self.reasons: dict[int, str] = {}

    def report(self, number: int, reason: str) -> None:
        """Note that a sample cannot be read. Raises RankError if it is one too many."""
        if number in self.reasons:
            return
        self.reasons[number] = reason
        count, total = len(self.reasons), len(self.samples)
        line = f"{self.samples.name(number)} cannot be read ({reason})"
        if count > max(1, self.max_share * total):
            raise RankError(
                f"data.max_unreadable={self.max_share:g}: {count} of {total} photographs became unreadable during the "
                f"run, the last: {line}; check the disk, or allow a larger share"
            )
        print(f"{line}; the one after it takes its place ({count} of {total} so far)", file=sys.stderr)

    def read(self, number: int, read: Callable[[int], Content]) -> tuple[int, Content]:
        """What `read` returns for a sample, or for the first one after it that can be read; and that one's number."""
        return first_readable(number, len(self.samples), lambda number: self._read_good(number, read), self.report)

    def _read_good(self, number: int, read: Callable[[int], Content]) -> Content:
        if number in self.reasons:
            raise OSError(self.reasons[number])
        return read(number)


def first_readable(
    number: int, count: int, read: Callable[[int], Content], failed: Callable[[int, str], None]
) -> tuple[int, Content]:
    """(n, read(n)) for the first n of number, number + 1, ... (count - 1 is followed by 0) that can be read.

    failed: told each number that cannot, and why.
    """
    for place in range(count):
        candidate = (number + place) % count
        try:
            return candidate, read(candidate)
        except (OSError, UnfitPhotoError) as error:
            failed(candidate, getattr(error, "strerror", None) or str(error))
    raise RankError(f"none of {count} photographs can be read any more; check the disk")
