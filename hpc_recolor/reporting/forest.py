"""Forest plot: intervals of CIEDE2000 against the gray copy, as positions on a common axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_recolor.reporting.verdicts import Standing, Verdict

MARGIN = 0.06


@dataclass(frozen=True)
class Line:
    """One interval. left, width, mean: in percent of the axis."""

    verdict: Verdict
    standing: Standing
    left: float
    width: float
    mean: float


@dataclass(frozen=True)
class Forest:
    """All intervals, and where the gray copy is [percent of the axis]."""

    lines: list[Line]
    zero: float


def intervals(verdicts: Sequence[Verdict]) -> Forest | None:
    """The intervals of all runs that have values of single images; None if there are none."""
    standings = [(verdict, standing) for verdict in verdicts for standing in verdict.standings]
    if not standings:
        return None
    ends = [end for _, standing in standings for end in _ends(standing)]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    margin = MARGIN * (high - low) or 1.0
    start, width = low - margin, high - low + 2 * margin

    def place(value: float) -> float:
        return 100 * (value - start) / width

    lines = []
    for verdict, standing in standings:
        left, right = map(place, _ends(standing))
        lines.append(Line(verdict, standing, left, right - left, place(standing.against_gray.difference)))
    return Forest(lines, place(0.0))


def _ends(standing: Standing) -> tuple[float, float]:
    half = standing.against_gray.half_width or 0.0
    return standing.against_gray.difference - half, standing.against_gray.difference + half
