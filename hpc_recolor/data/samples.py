"""What a run trains or is evaluated on: samples by number, read from photographs or from shards."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpc_recolor.data.entries import read_file
from hpc_recolor.data.photo import UnfitPhotoError
from hpc_recolor.runtime.errors import RankError
from hpc_recolor.runtime.output import escaped

# photo: a file of any size; jpeg: already of the run's size; raw: pixels of that size.
SampleKind = Literal["photo", "jpeg", "raw"]
T = TypeVar("T")


class Samples(Protocol):
    """A numbered, unchanging list of samples."""

    @property
    def kind(self) -> SampleKind:
        """What `read` returns."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> NDArray[np.uint8]:
        """A sample: bytes of an image file (n,), or raw RGB pixels (size, size, 3). Raises OSError."""

    def name(self, number: int) -> str:
        """The name that the user knows it by."""


class PhotoFiles:
    """Photographs as they are."""

    kind: SampleKind = "photo"

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> NDArray[np.uint8]:
        """Bytes of the file (n,). Raises OSError."""
        return np.frombuffer(read_file(self.paths[number]), np.uint8)

    def name(self, number: int) -> str:
        """The path."""
        return str(self.paths[number])


class Subset:
    """Some of other samples, in the order of `numbers`."""

    def __init__(self, samples: Samples, numbers: Sequence[int]) -> None:
        self.samples, self.numbers = samples, numbers

    @property
    def kind(self) -> SampleKind:
        """As in all samples."""
        return self.samples.kind

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, number: int) -> NDArray[np.uint8]:
        """As all samples do. Raises OSError."""
        return self.samples.read(self.numbers[number])

    def name(self, number: int) -> str:
        """As in all samples."""
        return self.samples.name(self.numbers[number])


class SampleReader:
    """Reads samples of a run. Each that cannot be read is reported once, counted, and replaced by the next."""

    def __init__(self, samples: Samples, max_unreadable: float) -> None:
        """max_unreadable: share of the samples, 0 to 1."""
        self.samples, self.max_unreadable = samples, max_unreadable
        self.reasons: dict[int, str] = {}

    def report(self, number: int, reason: str) -> None:
        """Record that a sample cannot be read. Raises RankError if more than max_unreadable (and more than one) are."""
        if number in self.reasons:
            return
        self.reasons[number] = reason
        count, total = len(self.reasons), len(self.samples)
        line = f"{self.samples.name(number)} cannot be read ({reason})"
        if count > max(1, self.max_unreadable * total):
            raise RankError(
                f"data.max_unreadable={self.max_unreadable:g}",
                f"{count} of {total} photographs became unreadable during the run, the last: {line}",
                "check the disk, or allow a larger share",
            )
        print(f"{escaped(line)}; replaced by the next one ({count} of {total} so far)", file=sys.stderr)

    def read(self, number: int, read: Callable[[int], T]) -> tuple[int, T]:
        """(n, read(n)) for the first sample n, from `number` on, that can be read. Raises RankError if none can."""
        return first_readable(number, len(self.samples), lambda number: self._read_if_good(number, read), self.report)

    def _read_if_good(self, number: int, read: Callable[[int], T]) -> T:
        if number in self.reasons:
            raise OSError(self.reasons[number])
        return read(number)


def first_readable(
    number: int, count: int, read: Callable[[int], T], on_failure: Callable[[int, str], None]
) -> tuple[int, T]:
    """(n, read(n)) for the first n of number, number + 1, ... (count - 1 is followed by 0) that can be read.

    on_failure: called with each number that cannot be read, and the reason. Raises RankError if none of `count` can.
    """
    for offset in range(count):
        candidate = (number + offset) % count
        try:
            return candidate, read(candidate)
        except (OSError, UnfitPhotoError) as error:
            on_failure(candidate, getattr(error, "strerror", None) or str(error))
    raise RankError(f"{count} photographs", "none can be read any more", "check the disk")
