"""Which checkpoints of a run are measured, and what epoch each is of."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import MANIFEST, Manifest
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A whole checkpoint. epoch: that it was made after, or None where nothing tells; raw: whether the weights are
    those of the last step, because the user wants these or the run keeps no average."""

    path: Path
    manifest: Manifest
    sha256: str
    epoch: float | None
    raw: bool

    @property
    def stem(self) -> str:
        """The name of its results."""
        name = self.path.name if self.epoch is None else f"epoch-{round(self.epoch):04d}"
        return f"{name}-raw" if self.raw else name


def choose(run: RunFolder, epochs: Sequence[int], raw: bool) -> list[Choice]:
    """The checkpoints of these epochs, or the newest whole one. For one process alone.

    Raises UserError, naming the epochs that are there, if there is none of an epoch, and if one is damaged.
    """
    per_epoch = images_per_epoch(run)
    if not epochs or not checkpoints.committed(run):
        newest, skipped = checkpoints.newest_whole(run)
        for line in skipped:
            print(line, file=sys.stderr)
        return [_choice(newest, per_epoch, raw)]
    there = {path: epoch_of(checkpoints.read_manifest(path), per_epoch) for path in _readable(run)}
    paths = [_of_epoch(run, epoch, there) for epoch in dict.fromkeys(epochs)]
    for path in paths:
        damage = checkpoints.find_damage(path)
        if damage:
            raise UserError(f"checkpoint {path} is damaged: {damage}; bring it back from a copy, or name another epoch")
    return [_choice(path, per_epoch, raw) for path in paths]


def images_per_epoch(run: RunFolder) -> float | None:
    """How many images an epoch of the run has, by what it told while it trained; None if it told nothing."""
    try:
        rows = read_metrics(run.metrics)
    except (OSError, ValueError):
        return None
    told = [(row.get("images_seen"), row.get("epoch")) for row in rows if isinstance(row, dict)]
    return next((images / epoch for images, epoch in reversed(told) if images and epoch), None)


def epoch_of(manifest: Manifest, per_epoch: float | None) -> float | None:
    """The epoch that a checkpoint is a milestone of, or how many the images that it has seen come to."""
    if manifest.snapshot_epoch is not None:
        return float(manifest.snapshot_epoch)
    return manifest.images_seen / per_epoch if per_epoch else None


def _choice(path: Path, per_epoch: float | None, raw: bool) -> Choice:
    manifest = checkpoints.read_manifest(path)
    kind = checkpoints.weights_kind(checkpoints.fragments(path, manifest))
    sha256 = record_of(path / MANIFEST).sha256
    return Choice(path, manifest, sha256, epoch_of(manifest, per_epoch), raw or kind == "weight")


def _readable(run: RunFolder) -> list[Path]:
    return [path for path in checkpoints.committed(run) if checkpoints.find_damage(path, []) is None]


def _of_epoch(run: RunFolder, epoch: int, there: dict[Path, float | None]) -> Path:
    """The milestone of an epoch, which its images come to as well, or else the nearest that rounds to it."""
    near = {path: abs(found - epoch) for path, found in there.items() if found is not None and round(found) == epoch}
    if not near:
        known = ", ".join(f"{found:g}" for found in sorted({found for found in there.values() if found is not None}))
        raise UserError(
            f"checkpoint={epoch}: {run.path} has none of that epoch, but of {known or 'no known epoch'}; name one of "
            "these, and give train.snapshots to keep others"
        )
    return min(near, key=lambda path: (near[path], path.name))
