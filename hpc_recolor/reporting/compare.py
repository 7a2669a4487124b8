"""Which runs can be compared: by what was measured, and by the config keys in which they differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hpc_recolor.config import policies
from hpc_recolor.config_file import leaves
from hpc_recolor.evaluation.results import StoredEvaluation
from hpc_recolor.reporting.numbers import plural
from hpc_recolor.reporting.runs import Run

# Of several data that equally many runs were measured on.
PREFERRED_DATA = ("test", "val", "held-out")


@dataclass(frozen=True)
class Group:
    """Evaluations whose numbers can be compared, run by run."""

    evaluations: tuple[tuple[Run, StoredEvaluation], ...]

    @property
    def runs(self) -> list[Run]:
        """Each run of the group once."""
        return list({run.number: run for run, _ in self.evaluations}.values())

    @property
    def what(self) -> str:
        """`300 images of test, 128 px, crop`."""
        protocol = self.evaluations[0][1].protocol
        return f"{plural(protocol.images, 'image')} of {protocol.data}, {protocol.size} px, {protocol.fit}"


@dataclass(frozen=True)
class ConfigRow:
    """A config key: each run's value as text, and which of them stand out."""

    key: str
    values: tuple[str, ...]
    odd: tuple[bool, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs have different values."""
        return len(set(self.values)) > 1


def choose_data(runs: Sequence[Run]) -> str | None:
    """The data that most runs were measured on; None if no run was measured."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.evaluations:
            counts[name] = counts.get(name, 0) + 1
    order = {name: rank for rank, name in enumerate(PREFERRED_DATA)}
    ranked = sorted(counts, key=lambda name: (-counts[name], order.get(name, len(order)), name))
    return ranked[0] if ranked else None


def group(runs: Sequence[Run], data: str | None) -> list[Group]:
    """Evaluations in groups that can be compared, the group of most runs first; ties keep the order of the runs."""
    groups: dict[tuple[Any, ...], list[tuple[Run, StoredEvaluation]]] = {}
    for run in runs:
        for evaluation in run.measured(data):
            groups.setdefault(evaluation.comparable_by, []).append((run, evaluation))
    return sorted((Group(tuple(one)) for one in groups.values()), key=lambda one: -len(one.runs))


def why_apart(group: Group, other: Group) -> str:
    """Why two groups cannot be compared, such as `64 px, not 128 px`."""
    one, two = group.evaluations[0][1].protocol, other.evaluations[0][1].protocol
    reasons = []
    if one.size != two.size:
        reasons.append(f"{one.size} px, not {two.size} px")
    if one.fit != two.fit:
        reasons.append(f"fit {one.fit}, not {two.fit}")
    if one.images != two.images:
        reasons.append(f"{plural(one.images, 'image')}, not {two.images:,}")
    return ", ".join(reasons) or "other photographs"


def config_rows(runs: Sequence[Run]) -> list[ConfigRow]:
    """All config keys. Values that at most half of the runs have stand out."""
    trees = [dict(leaves(run.config.model_dump(mode="json"))) for run in runs]
    rows = []
    for key in trees[0]:
        if not policies()[key].in_report:
            continue
        values = tuple(_text(tree[key]) for tree in trees)
        odd = tuple(values.count(value) * 2 <= len(values) for value in values)
        rows.append(ConfigRow(key, values, odd))
    return rows


def learned_differences(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """Keys that affect what is learned and in which two runs differ, with both values."""
    first, second = (dict(leaves(run.config.model_dump(mode="json"))) for run in (one, other))
    return [
        (key, first[key], second[key])
        for key, policy in policies().items()
        if policy.recipe and first[key] != second[key]
    ]


def one_key_apart(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, str, Any, Any]]:
    """All pairs of runs that differ in one key that affects what is learned: both runs, the key, both values."""
    for one, other in combinations(runs, 2):
        differences = learned_differences(one, other)
        if len(differences) == 1:
            yield one, other, *differences[0]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
