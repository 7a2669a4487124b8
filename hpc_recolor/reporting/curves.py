"""Training curves, as data for the page's script."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hpc_recolor.evaluation.metric_registry import BY_KEY
from hpc_recolor.evaluation.results import finite
from hpc_recolor.reporting.numbers import MINUS
from hpc_recolor.reporting.runs import COLOR_NAMES, Run

POINTS_AT_MOST = 1000
SIGNIFICANT_DIGITS = 5
CRITERIA = {"bce": "cross-entropy", "l1": "L1 of the probability", "mse": "least squares"}


@dataclass(frozen=True)
class Plot:
    """A plot. title and note: above it; series: run number, label, line (`solid` training, `dots` held out beside
    training, `marked` held out alone, `reference`), and x (epochs, images) and y as lists; noisy: whether a running
    mean helps; x_label: of what x is, if neither epochs nor images; secondary: of how it was
    trained, not of what came of it."""

    title: str
    note: str
    series: list[dict[str, Any]]
    noisy: bool = True
    x_label: str = ""
    secondary: bool = False


def plots(runs: Sequence[Run]) -> list[Plot]:
    """All plots with data. Losses in different color spaces or with different criteria get separate plots."""
    made = [
        *_losses(runs),
        _held_out(runs, "ciede2000", "gray_ciede2000", "gray copy"),
        _held_out(runs, "ab_error", "gray_ab_error", "gray copy"),
        _held_out(runs, "colorfulness", "original_colorfulness", "originals"),
        _training(runs, "Learning rate", "", "lr", noisy=False),
        _training(runs, "Gradient norm, generator", "", "generator_gradient"),
        _training(runs, "Gradient norm, discriminator", "", "discriminator_gradient"),
        _training(runs, "Throughput", "images/s", "images_per_s"),
    ]
    return [plot for plot in made if any(series["y"] for series in plot.series)]


def thinned(runs: Sequence[Run]) -> list[str]:
    """A line for each run whose training curves are drawn as means."""
    lines = []
    for run in runs:
        count = len(run.rows("train"))
        if count > POINTS_AT_MOST:
            lines.append(f"{run.name}: {count:,} readings, each point is the mean of {_stride(count)}")
    return lines


def _losses(runs: Sequence[Run]) -> list[Plot]:
    made = []
    by_criterion: dict[str, list[Run]] = {}
    for run in runs:
        if run.config.loss.adversarial != "none":
            by_criterion.setdefault(run.config.loss.adversarial, []).append(run)
    for key, title in (("discriminator", "Discriminator loss"), ("adversarial", "Generator, adversarial loss")):
        for criterion, members in by_criterion.items():
            made.append(_both(members, title, CRITERIA[criterion], key))
    by_color: dict[str, list[Run]] = {}
    for run in runs:
        by_color.setdefault(run.config.model.color, []).append(run)
    for color, members in by_color.items():
        what = f"of {'red, green and blue' if color == 'rgb' else 'a* and b*'}, in [{MINUS}1, 1]"
        made.append(_both(members, f"Generator, L1 loss, {COLOR_NAMES[color]} runs", what, "l1"))
    return made


def _both(runs: Sequence[Run], title: str, note: str, key: str) -> Plot:
    """Training (solid) and held-out (dots) values of a loss."""
    series = []
    for run in runs:
        series += [_series(run, "train", key, run.name, "solid")]
        series += [_series(run, "held_out", key, f"{run.name}, held out", "dots")]
    return Plot(title, note, series)


def _training(runs: Sequence[Run], title: str, unit: str, key: str, noisy: bool = True) -> Plot:
    series = [_series(run, "train", key, run.name, "solid") for run in runs]
    return Plot(title, unit, series, noisy, secondary=True)


def _held_out(runs: Sequence[Run], key: str, reference: str, name: str) -> Plot:
    """A metric on held-out photographs. reference: key of what it is compared with, called `name`."""
    metric = BY_KEY[key]
    series = [_series(run, "held_out", key, run.name, "marked") for run in runs]
    references = [_series(run, "held_out", reference, f"{run.name}, {name}", "reference") for run in runs]
    if any(one["y"] for one in series):
        series += references
    return Plot(f"{metric.name}, held out", f"{metric.unit}; thin dashed: {name}", series)


def _series(run: Run, kind: str, key: str, label: str, line: str) -> dict[str, Any]:
    points = [
        (epoch, seen, value)
        for row in run.rows(kind)
        if (epoch := finite(row.get("epoch"))) is not None
        and (seen := finite(row.get("images_seen"))) is not None
        and (value := finite(row.get(key))) is not None
    ]
    epochs, images, values = _thin(sorted(points))
    return {"run": run.number, "label": label, "line": line, "epochs": epochs, "images": images, "y": values}


def _thin(points: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float], list[float]]:
    """At most POINTS_AT_MOST points: means of neighbors."""
    stride = _stride(len(points))
    parts = [points[start : start + stride] for start in range(0, len(points), stride)]
    means = [tuple(fmean(column) for column in zip(*part, strict=True)) for part in parts]
    columns = [[_short(one[place]) for one in means] for place in range(3)]
    return columns[0], columns[1], columns[2]


def _stride(count: int) -> int:
    return max(1, -(-count // POINTS_AT_MOST))


def _short(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
