"""The front of each run from faithful to vivid: CIEDE2000 against colorfulness, as a plot and as sentences.

One number hides what it cost: a pale model has a low CIEDE2000, a vivid one a high one. A run is better than another
where its CIEDE2000 is lower at the same colorfulness.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hpc_recolor.evaluation.results import StoredEvaluation, finite
from hpc_recolor.reporting.compare import Group
from hpc_recolor.reporting.curves import Plot
from hpc_recolor.reporting.runs import Run

X_LABEL = "colorfulness, over the originals\N{RIGHT SINGLE QUOTATION MARK}"
EPOCHS_AND_IMAGES = ("epochs", "images")  # where the page's script finds x


@dataclass(frozen=True)
class Front:
    """A run's front. points: colorfulness over the originals', and CIEDE2000 over the gray copy's, by colorfulness."""

    run: Run
    points: tuple[tuple[float, float], ...]

    def at(self, colorfulness: float) -> float:
        """CIEDE2000 there, linear between points. Raises ValueError outside of the front."""
        for (x1, y1), (x2, y2) in zip(self.points, self.points[1:], strict=False):
            if x1 <= colorfulness <= x2:
                return y1 + (y2 - y1) * (colorfulness - x1) / (x2 - x1) if x2 > x1 else min(y1, y2)
        raise ValueError(colorfulness)


def fronts(group: Group) -> list[Front]:
    """The front of each run of a group that was measured with --vividness, of its last such evaluation."""
    found = {}
    for run, stored in group.evaluations:
        if points := tuple(sorted(_points(stored))):
            found[run.number] = Front(run, points)
    return list(found.values())


def plot(found: Sequence[Front]) -> Plot:
    """All fronts, between the gray copy (0, 1) and the originals (1, 0)."""
    series = [
        {"run": front.run.number, "label": front.run.name, "line": "marked", **_columns(front.points)}
        for front in found
    ]
    ends = {"run": 0, "label": "gray copy and originals", "line": "reference", **_columns(((0.0, 1.0), (1.0, 0.0)))}
    note = "CIEDE2000, over the gray copy\N{RIGHT SINGLE QUOTATION MARK}s; thin dashed: gray copy to originals"
    return Plot("CIEDE2000 against colorfulness", note, [*series, ends], noisy=False, x_label=X_LABEL)


def comparisons(found: Sequence[Front]) -> list[str]:
    """A sentence for each two runs with colorfulness in common: which lies below the other, or where they cross."""
    return [sentence for one, other in combinations(found, 2) if (sentence := _compare(one, other))]


def _compare(one: Front, other: Front) -> str | None:
    low = max(one.points[0][0], other.points[0][0])
    high = min(one.points[-1][0], other.points[-1][0])
    if low >= high:
        return None
    places = sorted({low, high} | {x for x, _ in (*one.points, *other.points) if low < x < high})
    differences = [one.at(x) - other.at(x) for x in places]
    where = f"from {low:.2f} to {high:.2f} of the originals\N{RIGHT SINGLE QUOTATION MARK} colorfulness"
    mean = sum(map(abs, differences)) / len(differences)
    if max(differences) < 0:
        return f"{one.run.name} lies below {other.run.name} {where}, by {mean:.3f} in the mean."
    if min(differences) > 0:
        return f"{other.run.name} lies below {one.run.name} {where}, by {mean:.3f} in the mean."
    return f"{one.run.name} and {other.run.name} cross {where}."


def _points(stored: StoredEvaluation) -> Iterator[tuple[float, float]]:
    gray, originals = stored.content.gray_ciede2000, stored.content.original_colorfulness
    if not gray or not originals:
        return
    for point in stored.content.front:
        color, error = finite(point.colorfulness), finite(point.ciede2000)
        if color is not None and error is not None:
            yield color / originals, error / gray


def _columns(points: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    x, y = ([round(point[place], 4) for point in points] for place in (0, 1))
    return {**dict.fromkeys(EPOCHS_AND_IMAGES, x), "y": y}
