"""Runs that differ in run.seed alone, as one line each: means over seeds with their intervals."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from hpc_recolor.config_file import leaves
from hpc_recolor.evaluation.metric_registry import BY_KEY
from hpc_recolor.evaluation.results import StoredEvaluation
from hpc_recolor.reporting.compare import Group
from hpc_recolor.reporting.numbers import APOSTROPHE, PLUS_MINUS, number
from hpc_recolor.reporting.runs import Run
from hpc_recolor.reporting.tables import time_in_steps_s

# Half of a 95 % interval of the mean of n values, in standard errors: Student's t with n - 1 degrees of freedom.
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
MORE_95 = 2.0

Value = Callable[[Run, StoredEvaluation], float | None]


@dataclass(frozen=True)
class SeedsRow:
    """Runs that are the same but for their seed. cells: a text for each of `headings`."""

    name: str
    seeds: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class SeedsTable:
    """headings: of the columns behind name and number of seeds."""

    headings: tuple[str, ...]
    rows: list[SeedsRow]


def over_seeds(group: Group) -> SeedsTable | None:
    """The table of a group of evaluations, each run's last; None unless some runs differ in their seed alone."""
    last = {run.number: (run, stored) for run, stored in group.evaluations}
    families: dict[str, list[tuple[Run, StoredEvaluation]]] = {}
    for run, stored in last.values():
        families.setdefault(_without_seed(run), []).append((run, stored))
    if all(len(members) == 1 for members in families.values()):
        return None
    columns = {name: column for name, column in _columns().items() if any(column[0](*one) for one in last.values())}
    rows = [
        SeedsRow(_common_name(members), len(members), tuple(_cell(members, *column) for column in columns.values()))
        for members in families.values()
    ]
    return SeedsTable(tuple(columns), rows)


def _columns() -> dict[str, tuple[Value, int]]:
    """By heading: the value of one run, and its decimals."""
    columns: dict[str, tuple[Value, int]] = {
        "CIEDE2000": (lambda _, one: one.value("model", "ciede2000"), 3),
        f"over the gray copy{APOSTROPHE}s": (lambda _, one: _ratio(one), 4),
        "colorfulness": (lambda _, one: one.value("model", "colorfulness"), 1),
    }
    for key in ("recognized_lite0", "recognized_lite2"):
        columns[BY_KEY[key].name.lower()] = (lambda _, one, key=key: one.value("model", key), 3)  # type: ignore[misc]
    columns["seconds in steps"] = (lambda run, _: time_in_steps_s(run.rows("train")), 0)
    return columns


def _ratio(stored: StoredEvaluation) -> float | None:
    model, gray = stored.value("model", "ciede2000"), stored.content.gray_ciede2000
    return model / gray if model is not None and gray else None


def _cell(members: Sequence[tuple[Run, StoredEvaluation]], value: Value, digits: int) -> str:
    """`0.812 +- 0.004`: the mean over the runs, and half of its 95 % interval."""
    values = [one for member in members if (one := value(*member)) is not None]
    if len(values) < 2:
        return number(values[0] if values else None, digits)
    half = STUDENT_95.get(len(values), MORE_95) * stdev(values) / math.sqrt(len(values))
    return f"{number(fmean(values), digits)} {PLUS_MINUS} {number(half, digits)}"


def _without_seed(run: Run) -> str:
    config = dict(leaves(run.config.model_dump(mode="json")))
    return repr(sorted((key, value) for key, value in config.items() if key not in ("run.seed", "run.name")))


def _common_name(members: Sequence[tuple[Run, StoredEvaluation]]) -> str:
    """What the names of the runs begin with."""
    names = [run.name for run, _ in members]
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names)  # noqa: RUF071, characters are what is meant
    return common.removesuffix("seed").rstrip("-_. ") or names[0]
