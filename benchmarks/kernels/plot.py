"""Plots a report: a panel per size, a line per op, a marker per implementation."""

from pathlib import Path
from typing import Any

from benchmarks.kernels.report import Report, Row

# Implementation: color and marker; ours is drawn on top.
MARKERS = {
    "copy": ("#555555", "|"),
    "eager": ("#d55e00", "s"),
    "compiled": ("#009e73", "^"),
    "kornia": ("#cc79a7", "D"),
    "kornia_compiled": ("#e69f00", "v"),
    "ours": ("#0072b2", "o"),
}


def plot(report: Report, file: Path) -> None:
    """Write a PNG: on a GPU the share of the large copy's bandwidth, on a CPU the time relative to ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [size for _, size in sorted({(row.n * row.side_px**2, row.size) for row in report.rows})]
    ops = list(dict.fromkeys(row.op for row in report.rows))[::-1]
    columns = min(3, len(sizes))
    lines = -(-len(sizes) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(max(10, 2.5 + 4 * columns), 1.8 + (0.7 + 0.28 * len(ops)) * lines),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(sizes) :]:
        axis.axis("off")
    for axis, size in zip(axes.flat, sizes, strict=False):
        axis.set_title(size, fontsize=10)
        _panel(axis, [row for row in report.rows if row.size == size], ops, report.is_gpu)
    handles = dict(pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    names = [name for side in MARKERS for name in handles if name.split(",")[0] == side]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=len(names))
    figure.suptitle(_title(report), fontsize=11)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, rows: list[Row], ops: list[str], is_gpu: bool) -> None:
    axis.set_yticks(range(len(ops)), ops)
    axis.set_ylim(-0.7, len(ops) - 0.3)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.axvline(1, color="#555555", linewidth=1, linestyle="--")
    axis.tick_params(labelsize=9, labelbottom=True)
    (_shares if is_gpu else _ratios)(axis, rows, ops)
    for row in rows:
        if row.wrong is not None:
            axis.text(0.5, ops.index(row.op), "WRONG", color="#cc0000", fontsize=9, va="center", ha="center")


def _shares(axis: Any, rows: list[Row], ops: list[str]) -> None:
    axis.set_xlim(0, 1.15)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("share of a large copy's bandwidth", fontsize=9)
    for side, (color, marker) in MARKERS.items():
        timed = [(row.sides[side], ops.index(row.op)) for row in rows if side in row.sides]
        label = "copy, of as many bytes" if side == "copy" else side
        _marks(axis, [(timed_side.best.share_of_copy, place) for timed_side, place in timed], label, color, marker)
        if side == "ours":
            plain = [(timed_side.plain.share_of_copy, place) for timed_side, place in timed]
            _marks(axis, plain, "ours, launched from Python", color, marker, hollow=True)


def _ratios(axis: Any, rows: list[Row], ops: list[str]) -> None:
    axis.set_xlabel("time over ours, which is eager here (right of the line: ours is faster)", fontsize=9)
    largest = 1.0
    for side, (color, marker) in MARKERS.items():
        if side in ("copy", "ours"):
            continue
        timed = [(row.sides[side].best.times_ours, ops.index(row.op)) for row in rows if side in row.sides]
        points = [(ratio, place) for ratio, place in timed if ratio]
        _marks(axis, points, side, color, marker)
        largest = max([largest, *(ratio for ratio, _ in points)])
    axis.set_xlim(0, max(axis.get_xlim()[1], 1.1 * largest))  # the panels share it


def _marks(
    axis: Any, points: list[tuple[float, int]], label: str, color: str, marker: str, hollow: bool = False
) -> None:
    if points:
        across, up = zip(*points, strict=True)
        face = "none" if hollow else color
        axis.plot(across, up, marker, color=color, markerfacecolor=face, markersize=6.5, label=label)


def _title(report: Report) -> str:
    versions = report.machine["versions"]
    threads = report.machine["threads"]
    cpu = f"CPU, {report.machine['processor']}, {threads} thread{'s' if threads > 1 else ''}"
    machine = report.device if report.is_gpu else cpu
    return f"{machine}\ntorch {versions['torch']}, triton {versions['triton']}, commit {report.machine['commit']}"
