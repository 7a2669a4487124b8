"""`python -m hpc_recolor.checkpoint list | verify | export RUN`: inspect, verify and export a run's checkpoints."""

import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.evaluation.results import chosen_vividness
from hpc_recolor.models.weights_package import COLORIZER, license_of
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import MANIFEST, MIB, Manifest
from hpc_recolor.run_folder.export import (
    TrainedGenerator,
    check_target,
    export_generator,
    of_checkpoint,
    read_generator,
)
from hpc_recolor.run_folder.folder import GENERATOR_WEIGHTS, RunFolder, open_run
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress
from hpc_recolor.runtime.terminal_tables import Heading, Row, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from hpc_recolor.evaluation.portable_files import PortableFormat

app = cli.command("checkpoint")

DAMAGED = 1
HEADINGS = (
    Heading("checkpoint"),  # which `export` needs whole, and which says how many images it has seen
    *(Heading(name, is_number=True) for name in ("epoch", "ranks", "ZeRO", "size")),
    Heading("written"),
    Heading("code", folds=True),
)

Run = Annotated[Path, Parameter(name="RUN", help="Run folder.")]


@app.command(name="list")
def list_(run: Run, /) -> None:
    """Show a run's checkpoints, oldest first. Files are not read; `verify` does that."""
    folder, _ = open_run(run)
    saved = checkpoints.require_committed(folder)
    rows = []
    for path in saved:
        try:
            rows.append(Row([path.name, *_row(path, checkpoints.read_manifest(path))]))
        except (UserError, FileNotFoundError):
            if path.exists():  # else training has pruned it meanwhile
                rows.append(Row([path.name, *[""] * 5, "damaged; see verify"], style="red"))
    print_table(HEADINGS, rows)


@app.command
def verify(run: Run, /) -> int:
    """Read all files of all checkpoints, and compare them with what was written.

    The exit code is 0 if all are intact, 1 if any is damaged.
    """
    folder, _ = open_run(run)
    with show_progress(f"verifying {run}", "MiB") as progress:
        damages = dict(checkpoints.verify_all(folder, progress))
    for path, damage in damages.items():
        print(f"{path.name}: {f'damaged: {damage}' if damage else 'intact'}")
    return DAMAGED if any(damages.values()) else 0


@app.command
def export(
    source: Annotated[
        Path,
        Parameter(
            name="RUN",
            help="Run folder; for the other formats also a file that this command wrote, and by default the colorizer "
            "that comes with this package.",
            show_default=False,
        ),
    ] = COLORIZER,
    /,
    *,
    format: Annotated[
        Literal["safetensors", "onnx", "torch"],
        Parameter(
            help="safetensors: weights for this package. Whole colorizers for other programs, pixels in and out: onnx "
            "(extra onnx), or torch: a program of torch.export."
        ),
    ] = "safetensors",
    out: Annotated[
        Path | None,
        Parameter(
            help=f"File to write, *.safetensors, *.onnx or *.pt2; by default RUN/{GENERATOR_WEIGHTS} and the like, or "
            "in the working directory if RUN is a file."
        ),
    ] = None,
    checkpoint: Annotated[str | None, Parameter(help="Its name; by default the newest intact one.")] = None,
    half: Annotated[
        bool, Parameter(negative=(), help="Store the weights as float16, at half the size; they are read as float32.")
    ] = False,
    calibrate: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Measure BatchNorm's statistics of these weights anew, on the photographs that the run learned from.",
        ),
    ] = False,
    force: Annotated[bool, Parameter(negative=(), help="Replace existing files.")] = False,
) -> None:
    """Write the generator as one file, with a card that says what it is and how to load it.

    As safetensors, the card is in the header, so that `colorize --run FILE` needs this file alone, and beside it,
    ending in .json. As onnx or torch, it is in the file's metadata; what is written is compared with what `colorize`
    does. docs/export.md shows how to use them.
    The weights are their moving average if the run kept one; BatchNorm statistics are averaged over the ranks. If
    `evaluate --vividness` measured the run, the card names the vividness that `colorize` then uses by default.
    """
    if format != "safetensors":
        _refuse(format, {"half": half, "calibrate": calibrate})
        return _export_whole(source, format, out, checkpoint, force)
    if source.is_file():
        raise UserError(f"RUN={source}", "is a safetensors file already", "copy it, or use --format onnx or torch")
    folder, config = open_run(source)
    target = out or source / GENERATOR_WEIGHTS
    check_target(target, replace=force)
    path = checkpoints.intact_by_name(folder, checkpoint) if checkpoint is not None else _newest(folder)
    vividness = chosen_vividness(source)
    statistics = _statistics(config) if calibrate else None
    written = export_generator(config, path, target, half=half, vividness=vividness, calibrate=statistics)
    print(f"{written.weights}: generator after {written.images_seen} images, {written.size_bytes / MIB:.1f} MiB")
    print(f"vividness {vividness:g}")
    print(written.card)


def _export_whole(source: Path, kind: "PortableFormat", out: Path | None, checkpoint: str | None, force: bool) -> None:
    from hpc_recolor.evaluation import portable_files  # imports torch
    from hpc_recolor.evaluation.colorizer import Colorizer
    from hpc_recolor.models.backbone_unet import BackboneUNet

    portable_files.check_packages(kind)
    suffix = portable_files.SUFFIXES[kind]
    beside = Path(source.name) if source.is_file() else source / GENERATOR_WEIGHTS
    target = out or beside.with_suffix(suffix)
    check_target(target, force, suffix)
    trained = _named(source, checkpoint)
    vividness = chosen_vividness(source) if trained.vividness is None else trained.vividness
    colorizer = Colorizer.of(trained, vividness)
    has_backbone = isinstance(colorizer.generator, BackboneUNet)
    license_text = license_of(source, trained.config.model if has_backbone else None)
    notes = portable_files.notes_of(trained.card | {"vividness": vividness}, license_text)
    difference = portable_files.write_portable(colorizer, notes, target, kind)
    print(f"{target}: colorizer after {trained.images_seen} images, {target.stat().st_size / MIB:.1f} MiB")
    print(f"vividness {vividness:g}")
    print(f"its colors differ from those of `colorize` by {difference:.2f} CIEDE2000 in the mean")


def _named(source: Path, checkpoint: str | None) -> TrainedGenerator:
    """The generator of a file, or of a run's checkpoint, by default its newest intact one."""
    if checkpoint is None:
        return read_generator(source)
    folder, config = open_run(source)
    return of_checkpoint(config, checkpoints.intact_by_name(folder, checkpoint))


def _refuse(kind: str, flags: dict[str, bool]) -> None:
    for name, is_given in flags.items():
        if is_given:
            raise UserError(f"--{name}", f"is not for --format {kind}", "use --format safetensors, or leave it out")


def _statistics(config: Config) -> "Callable[[dict[str, Tensor]], dict[str, Tensor]]":
    from hpc_recolor.training.calibration import calibrated  # imports torch

    return partial(calibrated, config)


def _newest(run: RunFolder) -> Path:
    path, skipped = checkpoints.newest_intact(run)
    for line in skipped:
        print(line, file=sys.stderr)
    return path


def _row(path: Path, manifest: Manifest) -> list[str]:
    size_mib = sum(record.size_bytes for record in manifest.files.values()) / MIB
    written = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime).astimezone()
    return [
        "" if manifest.snapshot_epoch is None else str(manifest.snapshot_epoch),
        str(manifest.world_size),
        str(manifest.zero_stage),
        f"{size_mib:.1f} MiB",
        f"{written:%Y-%m-%d %H:%M}",
        manifest.commit or "unknown",
    ]


if __name__ == "__main__":
    sys.exit(cli.run(app))
