"""Which checkpoints of a run are measured, and the epoch of each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hpc_recolor.evaluation.results import finite
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import MANIFEST, Manifest
from hpc_recolor.run_folder.export import TrainedGenerator, read_export
from hpc_recolor.run_folder.files import sha256_of
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.errors import UserError


@dataclass(frozen=True)
class Choice:
    """An undamaged checkpoint. sha256: of its manifest; epoch: after which it was saved, None if unknown; raw: whether
    the weights are those of the last step, because the user asked for them or the run keeps no average."""

    path: Path
    manifest: Manifest
    sha256: str
    epoch: float | None
    raw: bool

    @property
    def stem(self) -> str:
        """The name of its evaluation, without suffix."""
        name = self.path.name if self.epoch is None else f"epoch-{round(self.epoch):04d}"
        return f"{name}-raw" if self.raw else name

    @property
    def images_seen(self) -> int:
        """How many the networks have learned from."""
        return self.manifest.images_seen

    @property
    def photos(self) -> str:
        """Fingerprint of the photographs that they have learned from."""
        return self.manifest.photos

    def generator_weights(self) -> dict[str, Tensor]:
        """The state dict to measure."""
        if self.raw:
            return checkpoints.trained_weights(self.path, self.manifest, "generator")
        return checkpoints.evaluation_weights(self.path, self.manifest)

    def discriminator_weights(self) -> dict[str, Tensor]:
        """The state dict after the last step."""
        return checkpoints.trained_weights(self.path, self.manifest, "discriminator")


@dataclass(frozen=True)
class ExportChoice:
    """A file that `checkpoint export` wrote, in place of a checkpoint. sha256: of the file."""

    path: Path
    sha256: str
    exported: TrainedGenerator
    epoch: None = None
    raw: bool = False
    photos: str = ""

    @property
    def stem(self) -> str:
        """The name of its evaluation, without suffix."""
        return self.path.stem

    @property
    def images_seen(self) -> int:
        """How many the generator has learned from."""
        return self.exported.images_seen

    def generator_weights(self) -> dict[str, Tensor]:
        """The state dict to measure."""
        return self.exported.weights

    def discriminator_weights(self) -> dict[str, Tensor]:
        """Never needed: an exported config has no adversarial loss."""
        raise NotImplementedError


def choose_export(file: Path) -> ExportChoice:
    """An export. Raises UserError if the file is none."""
    return ExportChoice(path=file, sha256=sha256_of(file), exported=read_export(file))


def choose(run: RunFolder, epochs: Sequence[int], raw: bool) -> list[Choice]:
    """The checkpoints of these epochs, or the newest undamaged one. Called on one rank only.

    Raises UserError, naming the epochs that exist, if an epoch has no checkpoint, and if one is damaged.
    """
    per_epoch = images_per_epoch(run)
    if not epochs or not checkpoints.committed(run):
        newest, skipped = checkpoints.newest_intact(run)
        for line in skipped:
            print(line, file=sys.stderr)
        return [_choice(newest, per_epoch, raw)]
    saved = {path: epoch_of(checkpoints.read_manifest(path), per_epoch) for path in _readable(run)}
    paths = [_of_epoch(run, epoch, saved) for epoch in dict.fromkeys(epochs)]
    for path in paths:
        damage = checkpoints.find_damage(path)
        if damage:
            raise UserError(
                f"checkpoint {path}", f"damaged ({damage})", "restore it from a copy, or name another epoch"
            )
    return [_choice(path, per_epoch, raw) for path in paths]


def images_per_epoch(run: RunFolder) -> float | None:
    """The number of images in an epoch of the run, from its metrics.jsonl; None if that does not say."""
    try:
        rows = read_metrics(run.metrics)
    except UserError:
        return None
    logged = [(finite(row.get("images_seen")), finite(row.get("epoch"))) for row in rows]
    return next((images / epoch for images, epoch in reversed(logged) if images and epoch), None)


def epoch_of(manifest: Manifest, per_epoch: float | None) -> float | None:
    """The epoch that a checkpoint is a snapshot of, else images_seen / images_per_epoch; None if neither is known."""
    if manifest.snapshot_epoch is not None:
        return float(manifest.snapshot_epoch)
    return manifest.images_seen / per_epoch if per_epoch else None


def _choice(path: Path, per_epoch: float | None, raw: bool) -> Choice:
    manifest = checkpoints.read_manifest(path)
    kind = checkpoints.weights_kind(checkpoints.fragments(path, manifest))
    sha256 = sha256_of(path / MANIFEST)
    epoch = epoch_of(manifest, per_epoch)
    return Choice(path=path, manifest=manifest, sha256=sha256, epoch=epoch, raw=raw or kind == "weight")


def _readable(run: RunFolder) -> list[Path]:
    return [path for path in checkpoints.committed(run) if checkpoints.find_damage(path, []) is None]


def _of_epoch(run: RunFolder, epoch: int, saved: dict[Path, float | None]) -> Path:
    """The checkpoint nearest to an epoch among those that round to it; a snapshot of the epoch is at distance 0."""
    near = {path: abs(found - epoch) for path, found in saved.items() if found is not None and round(found) == epoch}
    if not near:
        known = ", ".join(f"{found:g}" for found in sorted({found for found in saved.values() if found is not None}))
        raise UserError(
            f"checkpoint={epoch}",
            f"{run.path} has none of that epoch, only of {known or 'unknown epochs'}",
            "name one of these; train.snapshots keeps others",
        )
    return min(near, key=lambda path: (near[path], path.name))
