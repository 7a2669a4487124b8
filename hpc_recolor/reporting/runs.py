"""A run folder as the report shows it: config, curves, evaluations, and its newest checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_recolor.config import Config
from hpc_recolor.evaluation.results import StoredEvaluation, read_evaluations
from hpc_recolor.reporting.numbers import isolated
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.folder import open_run
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.run_folder.time_account import Start, read_starts
from hpc_recolor.runtime.errors import UserError

COLOR_NAMES = {"rgb": "RGB", "lab": "Lab"}


@dataclass(frozen=True)
class Checkpoint:
    """The newest committed checkpoint. parameters: weights by network, empty if its manifest cannot be read."""

    name: str
    size_bytes: int
    parameters: dict[str, int]


@dataclass(frozen=True)
class Run:
    """One run. name: unique in the report; given: its folder as the user wrote it; number: its place in the report.

    starts: what they spent their time on, as far as that was recorded.
    """

    number: int
    name: str
    given: str
    config: Config
    metrics: tuple[dict[str, Any], ...]
    evaluations: dict[str, tuple[StoredEvaluation, ...]]
    checkpoint: Checkpoint
    checkpoint_count: int
    starts: tuple[Start, ...] = ()

    @property
    def color_name(self) -> str:
        """The run's color space: `RGB` or `Lab`."""
        return COLOR_NAMES[self.config.model.color]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of one kind, as written."""
        return [row for row in self.metrics if row.get("kind") == kind]

    def measured(self, data: str | None) -> tuple[StoredEvaluation, ...]:
        """The run's evaluations of some data, the least trained first."""
        return self.evaluations.get(data, ()) if data else ()

    def last(self, data: str | None) -> StoredEvaluation | None:
        """The evaluation that represents the run: of its most trained weights, averaged ones if they were measured."""
        found = self.measured(data)
        return max(found, key=lambda one: (one.protocol.images_seen, not one.raw)) if found else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order given, each once.

    Raises UserError for the first that is not a run folder, has no checkpoint, or contains a damaged file.
    """
    once: dict[Path, Path] = {}
    for folder in folders:
        once.setdefault(folder.resolve(), folder)
    kept = list(once.values())
    return [_read_run(n, folder, name) for n, (folder, name) in enumerate(zip(kept, _names(kept), strict=True))]


def _names(folders: Sequence[Path]) -> list[str]:
    """Unique names of folders: the last part of the path, with as many parent folders as that takes."""
    whole = [folder.resolve().parts for folder in folders]
    names = []
    for parts in whole:
        length = 1
        while sum(other[-length:] == parts[-length:] for other in whole) > 1:
            length += 1
        names.append("/".join(parts[-length:]))
    return names


def _read_run(number: int, folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"RUN={folder}", "no such folder", "name a folder that training wrote")
    run, config = open_run(folder)
    saved = checkpoints.committed(run)
    if not saved:
        raise UserError(f"RUN={folder}", "no checkpoint yet", "train first, or leave this run out")
    return Run(
        number=number,
        name=isolated(name),
        given=str(folder),
        config=config,
        metrics=tuple(read_metrics(run.metrics) if run.metrics.is_file() else ()),
        evaluations=read_evaluations(run.path),
        checkpoint=_describe(saved[-1]),
        checkpoint_count=len(saved),
        starts=tuple(read_starts(run)),
    )


def _describe(checkpoint: Path) -> Checkpoint:
    size_bytes = sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file())
    parameters: dict[str, int] = {}
    try:
        shapes = checkpoints.read_manifest(checkpoint).parameters
    except UserError:  # a report does not fail because weights cannot be counted
        shapes = {}
    for name, shape in shapes.items():
        network = name.partition("/")[0]
        parameters[network] = parameters.get(network, 0) + math.prod(shape)
    return Checkpoint(checkpoint.name, size_bytes, parameters)
