"""The tables of the report: metrics with baselines, losses, and how runs were trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpc_recolor.evaluation.metric_registry import BY_KEY, METHODS, METRICS, Metric
from hpc_recolor.evaluation.results import StoredEvaluation, finite
from hpc_recolor.reporting.compare import Group
from hpc_recolor.reporting.numbers import APOSTROPHE, BLANK, duration, number, size
from hpc_recolor.reporting.peaks import peak_tflop_per_s
from hpc_recolor.reporting.runs import COLOR_NAMES, Run
from hpc_recolor.run_folder.time_account import TimeAccount, account, describe

MODEL_ROWS = {"model": "as generated", "model_own_l": f"photograph{APOSTROPHE}s L*"}
BASELINE_ROWS = {method.key: method.name.capitalize() for method in METHODS if method.baseline}


@dataclass
class Cell:
    """A value: its text, what it is sorted by, and whether it is the best of its column.

    mark: `best` of the models, or `baseline` where a baseline is better than every model.
    """

    text: str
    order: float | str | None
    mark: str = ""


@dataclass
class MetricsRow:
    """One row of the metrics table. run: None for a baseline; way: how its lightness was made."""

    run: Run | None
    name: str
    epoch: Cell
    way: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """metrics: the columns behind run, epoch and way; rows: models first, then baselines, then runs left blank."""

    metrics: tuple[Metric, ...]
    rows: list[MetricsRow]


def metrics_table(group: Group, others: Iterable[Run] = ()) -> Table:
    """All evaluations of a group in rows, with their baselines. others: runs that get a row of blanks."""
    metrics = _columns(group)
    rows = [
        MetricsRow(run=run, name=run.name, epoch=_epoch(evaluation), way=way, cells=_cells(evaluation, method, metrics))
        for run, evaluation in group.evaluations
        for method, way in MODEL_ROWS.items()
        if method in evaluation.content.rows
    ]
    rows += _baselines(group, metrics)
    for column, metric in enumerate(metrics):
        _mark(metric, [(row.run is not None, row.cells[column]) for row in rows])
    for run in others:
        blanks = [Cell(BLANK, None) for _ in metrics]
        rows.append(MetricsRow(run=run, name=run.name, epoch=Cell(BLANK, None), way="", cells=blanks))
    return Table(metrics, rows)


def _columns(group: Group) -> tuple[Metric, ...]:
    found = {key for _, one in group.evaluations for row in one.content.rows.values() for key in row}
    known = tuple(metric for metric in METRICS if metric.key in found)
    unknown = sorted(found - BY_KEY.keys())
    return known + tuple(Metric(key, key, "", digits=3, better="unranked", formula="") for key in unknown)


def _epoch(evaluation: StoredEvaluation) -> Cell:
    epoch = evaluation.protocol.epoch
    order = None if epoch is None else epoch + 1e-6 * evaluation.raw  # raw weights behind averaged ones
    return Cell(evaluation.epoch_text.removeprefix("epoch "), order)


def _cells(evaluation: StoredEvaluation, method: str, metrics: Sequence[Metric]) -> list[Cell]:
    values = ((metric, evaluation.value(method, metric.key)) for metric in metrics)
    return [Cell(number(value, metric.digits), value) for metric, value in values]


def _baselines(group: Group, metrics: Sequence[Metric]) -> list[MetricsRow]:
    """One row per baseline; several where its numbers differ between runs, as luma and L* do."""
    rows = []
    for key, name in BASELINE_ROWS.items():
        distinct: dict[tuple[str, ...], list[tuple[Run, StoredEvaluation]]] = {}
        for run, evaluation in group.evaluations:
            if key in evaluation.content.rows:
                cells = _cells(evaluation, key, metrics)
                distinct.setdefault(tuple(cell.text for cell in cells), []).append((run, evaluation))
        for members in distinct.values():
            way = "" if len(distinct) == 1 else _whose([run for run, _ in members], group)
            cells = _cells(members[0][1], key, metrics)
            rows.append(MetricsRow(run=None, name=name, epoch=Cell(BLANK, None), way=way, cells=cells))
    return rows


def _whose(runs: Sequence[Run], group: Group) -> str:
    """`of RGB runs` if that is all of them, else their names."""
    numbers = {run.number for run in runs}
    colors = {run.config.model.color for run in runs}
    if len(colors) == 1 and all(run.number in numbers for run in group.runs if run.config.model.color in colors):
        return f"of {COLOR_NAMES[next(iter(colors))]} runs"
    return "of " + ", ".join(dict.fromkeys(run.name for run in runs))


def _mark(metric: Metric, column: Sequence[tuple[bool, Cell]]) -> None:
    """Mark the best model, and baselines that are better. Values that round to the same text are equal."""
    if metric.better == "unranked":
        return
    scores = [
        (is_model, round(metric.score(cell.order), metric.digits), cell)
        for is_model, cell in column
        if isinstance(cell.order, float)
    ]
    best = min((score for is_model, score, _ in scores if is_model), default=None)
    if best is None:
        return
    for is_model, score, cell in scores:
        if is_model and score == best:
            cell.mark = "best"
        elif not is_model and score < best:
            cell.mark = "baseline"


@dataclass(frozen=True)
class TrainingFacts:
    """How a run was trained: texts by name of the fact."""

    run: Run
    facts: dict[str, str]


def training(runs: Sequence[Run]) -> list[TrainingFacts]:
    """Throughput, time, restarts, hardware and size of each run, without facts that no run knows."""
    facts = [_facts(run) for run in runs]
    known = [name for name in facts[0] if any(one[name] != BLANK for one in facts)]
    return [TrainingFacts(run, {name: one[name] for name in known}) for run, one in zip(runs, facts, strict=True)]


def _facts(run: Run) -> dict[str, str]:
    steps, starts = run.rows("train"), run.rows("start")
    last = starts[-1] if starts else {}
    seen = max((int(count) for row in run.metrics if (count := finite(row.get("images_seen")))), default=None)
    parameters = run.checkpoint.parameters
    generator, discriminator = (number_or_blank(parameters.get(name)) for name in ("generator", "discriminator"))
    return {
        "Images seen": number(seen, 0),
        "Epochs": _epochs(run),
        "Images/s, median": number(_median(steps, "images_per_s"), 1),
        "TFLOP/s of a process": _compute(steps, starts, run.config.train.precision),
        "Time in steps": duration(time_in_steps_s(steps)),
        "Wall clock": _wall_clock(run),
        "Restarts": str(len(starts) - 1) if starts else BLANK,
        "Processes": " then ".join(_once(str(start.get("world_size", BLANK)) for start in starts)) or BLANK,
        "Hardware": "; ".join(_once(str(start.get("hardware") or start.get("device", "")) for start in starts))
        or BLANK,
        "Parameters, generator": generator,
        "Parameters, discriminator": discriminator,
        "Checkpoint": f"{size(run.checkpoint.size_bytes)} each, {run.checkpoint_count} kept",
        "Commit": ", ".join(_once(str(start["commit"]) for start in starts if start.get("commit"))) or BLANK,
        "Versions": _versions(last.get("versions")),
        "Warnings": str(len(run.rows("warning"))) if run.metrics else BLANK,
    }


def _wall_clock(run: Run) -> str:
    """Where it went between the first start and the end of the last."""
    if not run.starts:
        return BLANK
    total = sum(account(run.starts, run.starts[0].began, now=None, is_running=False), TimeAccount())
    return f"{describe(total)} of {duration(total.total)}"


def _compute(steps: Sequence[dict[str, Any]], starts: Sequence[dict[str, Any]], precision: str) -> str:
    """The median TFLOP/s of a process, and its share of the GPU's peak if all starts had the same GPU."""
    achieved = _median(steps, "rank_tflop_per_s")
    if achieved is None:
        return BLANK
    hardware = {str(start.get("hardware")) for start in starts}
    peak = peak_tflop_per_s(hardware.pop(), precision) if len(hardware) == 1 else None
    return f"{achieved:.3g}" + (f", {achieved / peak:.1%} of the peak" if peak else "")


def _median(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    values = [value for row in rows if (value := finite(row.get(key)))]
    return median(values) if values else None


def time_in_steps_s(steps: Sequence[dict[str, Any]]) -> float | None:
    """Time of the training steps alone [s]: images between two rows over images/s, summed; None without rows."""
    total_s, seen = 0.0, 0.0
    for row in steps:
        now, rate = finite(row.get("images_seen")), finite(row.get("images_per_s"))
        if now is not None and rate:
            total_s += max(0.0, now - seen) / rate
            seen = now
    return total_s or None


def number_or_blank(count: int | None) -> str:
    """`1.2 M`, `640 k`; a dash for none."""
    if not count:
        return BLANK
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _epochs(run: Run) -> str:
    reached = max((epoch for row in run.metrics if (epoch := finite(row.get("epoch"))) is not None), default=None)
    return BLANK if reached is None else f"{reached:.4g} of {run.config.train.epochs}"


def _versions(versions: object) -> str:
    if not isinstance(versions, dict):
        return BLANK
    return ", ".join(f"{name} {value}" for name, value in versions.items()) or BLANK


def _once(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def losses_rows(group: Group) -> list[tuple[Run, StoredEvaluation, list[str]]]:
    """The training losses on the measured images: run, evaluation, and discriminator, adversarial, L1 as texts."""
    keys = ("discriminator", "adversarial", "l1")
    return [
        (run, one, [number(finite(one.content.losses.get(key)), 4) for key in keys]) for run, one in group.evaluations
    ]
