"""`python -m hpc_recolor.checkpoint list | verify | export RUN`: inspect, verify and export a run's checkpoints."""

import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.evaluation.results import chosen_vividness
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import MANIFEST, MIB, Manifest
from hpc_recolor.run_folder.export import check_target, export_generator
from hpc_recolor.run_folder.folder import GENERATOR_WEIGHTS, RunFolder, open_run
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress
from hpc_recolor.runtime.terminal_tables import Heading, Row, print_table

if TYPE_CHECKING:
    from torch import Tensor

app = cli.command("checkpoint")

DAMAGED = 1
HEADINGS = (
    Heading("checkpoint"),  # which `export` needs whole
    *(Heading(name, is_number=True) for name in ("images", "epoch", "ranks", "ZeRO", "size [MiB]")),
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
                rows.append(Row([path.name, *[""] * 6, "damaged; see verify"], style="red"))
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
    run: Run,
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help=f"File to write, *.safetensors; by default RUN/{GENERATOR_WEIGHTS}.")
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
    """Write the generator as safetensors, with a JSON card that says what it is and how to load it.

    The card is in the header, so that `colorize --run FILE` needs this file alone, and beside it, ending in .json.
    The weights are their moving average if the run kept one; BatchNorm statistics are averaged over the ranks. If
    `evaluate --vividness` measured the run, the card names the vividness that `colorize` then uses by default.
    """
    folder, config = open_run(run)
    target = out or run / GENERATOR_WEIGHTS
    check_target(target, replace=force)
    path = checkpoints.intact_by_name(folder, checkpoint) if checkpoint is not None else _newest(folder)
    vividness = chosen_vividness(run)
    statistics = _statistics(config) if calibrate else None
    written = export_generator(config, path, target, half=half, vividness=vividness, calibrate=statistics)
    print(f"{written.weights}: generator after {written.images_seen} images, {written.size_bytes / MIB:.1f} MiB")
    print(f"vividness {vividness:g}")
    print(written.card)


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
        str(manifest.images_seen),
        "" if manifest.snapshot_epoch is None else str(manifest.snapshot_epoch),
        str(manifest.world_size),
        str(manifest.zero_stage),
        f"{size_mib:.1f}",
        f"{written:%Y-%m-%d %H:%M:%S}",
        manifest.commit or "unknown",
    ]


if __name__ == "__main__":
    sys.exit(cli.run(app))
