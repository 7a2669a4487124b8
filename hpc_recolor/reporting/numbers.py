"""Numbers as text, and paired differences with their intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal
from unicodedata import bidirectional

BLANK = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"

# Half of a 95 % interval of a mean, in standard errors: the normal approximation.
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Difference:
    """Paired values of the same images: `mean` against `other_mean`. half_width: of the 95 % interval of the mean
    difference, by the normal approximation; None for fewer than two images."""

    mean: float
    other_mean: float
    half_width: float | None
    images: int

    @property
    def difference(self) -> float:
        """The mean difference."""
        return self.mean - self.other_mean

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """Whether the interval lies below 0, includes it, or lies above; 0 without an interval."""
        if self.half_width is None or abs(self.difference) <= self.half_width:
            return 0
        return -1 if self.difference < 0 else 1

    @property
    def digits(self) -> int:
        """Decimals to show: two significant digits of the half width."""
        if not self.half_width:
            return 2
        return min(3, max(1, 1 - math.floor(math.log10(self.half_width))))

    @property
    def size_text(self) -> str:
        """`0.78 +- 0.21`, without a sign."""
        half = "" if self.half_width is None else f" {PLUS_MINUS} {number(self.half_width, self.digits)}"
        return number(abs(self.difference), self.digits) + half


def pair(values: Iterable[tuple[float | None, float | None]]) -> Difference | None:
    """The difference of paired values, one pair per image, without pairs that have a blank; None if none is left."""
    pairs = [(one, other) for one, other in values if one is not None and other is not None]
    if not pairs:
        return None
    differences = [one - other for one, other in pairs]
    half = NORMAL_95 * stdev(differences) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(fmean(one for one, _ in pairs), fmean(other for _, other in pairs), half, len(pairs))


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals, commas between thousands, and a typographic minus; a dash for None."""
    if value is None or not math.isfinite(value):
        return BLANK
    text = f"{value:,.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("-")  # no minus before a zero
    return text.replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """`48 s`, `12 min`, `3 h 20 min`, `2 d 4 h`; a dash for None."""
    if seconds is None:
        return BLANK
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(size_bytes: float) -> str:
    """`1.2 GB`, `340 MB`, `12 kB`."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= of:
            return f"{size_bytes / of:.3g} {unit}"
    return f"{size_bytes / 1e3:.3g} kB"


def isolated(name: str) -> str:
    """A name that cannot reorder the words around it: one written from right to left in Unicode's isolates, which are
    what <bdi> is (UAX 9), and are understood in lists, tooltips and canvases too."""
    is_reversed = any(bidirectional(letter) in ("R", "AL", "RLE", "RLO", "RLI") for letter in name)
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}" if is_reversed else name


def plural(count: int, noun: str) -> str:
    """`1 image`, `300 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
