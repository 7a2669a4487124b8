"""`python -m hpc_recolor.checkpoint list | verify | export RUN`: look at a run's checkpoints, check and use them."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpc_recolor import cli
from hpc_recolor.config import ColorName, Config
from hpc_recolor.run_folder import checkpoints, tensor_files
from hpc_recolor.run_folder.checkpoints import MANIFEST, Manifest
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import GENERATOR_WEIGHTS, RunFolder, open_run
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress

app = cli.command("hpc_recolor.checkpoint")

MIB = 2**20
DAMAGED = 1

INPUTS: dict[ColorName, str] = {"lab": "L* / 50 - 1", "rgb": "2 * gray - 1, gray = Rec. 601 luma of RGB in [0, 1]"}
OUTPUTS: dict[ColorName, str] = {"lab": "(a*, b*) / 110", "rgb": "2 * RGB - 1, RGB in [0, 1]"}
HOW_TO_LOAD = """\
import json
from pathlib import Path
from safetensors.torch import load_file
from hpc_recolor.config import ModelConfig
from hpc_recolor.models.build import build_generator

card = json.loads(Path("{card}").read_text())
generator = build_generator(ModelConfig(**card["model"]), card["size"])
generator.load_state_dict(load_file("{weights}"))
generator.eval()
"""

Run = Annotated[Path, Parameter(name="RUN", help="Run folder.")]


@app.command(name="list")
def list_(run: Run, /) -> None:
    """Show a run's checkpoints, oldest first. Files are not read; `verify` does that."""
    folder, _ = open_run(run)
    table = Table("checkpoint", box=SIMPLE_HEAD)
    for column in ("images", "epoch", "ranks", "ZeRO", "size [MiB]"):
        table.add_column(column, justify="right")
    table.add_column("written")
    table.add_column("code", overflow="fold")
    for path in _some_checkpoints(folder):
        try:
            table.add_row(path.name, *_row(path, checkpoints.read_manifest(path)))
        except (UserError, FileNotFoundError):
            if path.exists():  # else training has pruned it meanwhile
                table.add_row(path.name, *[""] * 6, "damaged; see verify", style="red")
    Console(markup=False, highlight=False, emoji=False).print(table)


@app.command
def verify(run: Run, /) -> int:
    """Read all files of all checkpoints, and compare them with what was written.

    The exit code is 0 if all are whole, 1 if any is damaged.
    """
    folder, _ = open_run(run)
    found = _some_checkpoints(folder)
    with show_progress(f"verifying {run}", "MiB") as progress:
        total, done, damage = sum(map(_size_bytes, found)) // MIB, 0, {}
        for path in found:
            wrong = checkpoints.find_damage(path)
            done += _size_bytes(path)
            progress(done // MIB, total)
            if path.exists():  # else training has pruned it meanwhile
                damage[path] = wrong
    for path, wrong in damage.items():
        print(f"{path.name}: {f'damaged: {wrong}' if wrong else 'whole'}")
    return DAMAGED if any(damage.values()) else 0


@app.command
def export(
    run: Run,
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help=f"File to write, *.safetensors; by default RUN/{GENERATOR_WEIGHTS}.")
    ] = None,
    checkpoint: Annotated[str | None, Parameter(help="Its name; by default the newest whole one.")] = None,
    force: Annotated[bool, Parameter(negative=(), help="Replace files that are there already.")] = False,
) -> None:
    """Write the generator as safetensors, and beside it a JSON card that says what it is and how to load it.

    The weights are their moving average if the run kept one; BatchNorm's statistics are averaged over the ranks.
    """
    folder, config = open_run(run)
    target = out or run / GENERATOR_WEIGHTS
    card_file = target.with_suffix(".json")
    if target.suffix != ".safetensors":
        raise UserError(f"out={target}: give a name that ends in .safetensors")
    for file in (target, card_file):
        if file.exists() and not force:
            raise UserError(f"out={target}: {file} exists already; give another name, or --force to replace it")
    path = _chosen(folder, checkpoint)
    manifest = checkpoints.read_manifest(path)
    try:
        size_bytes = _write(target, card_file, _card(config, path, manifest, target), path, manifest)
    except OSError as error:
        raise UserError(f"out={target}: cannot write {error.filename} ({error.strerror})") from None
    print(f"{target}: generator after {manifest.images_seen} images, {size_bytes / MIB:.1f} MiB")
    print(card_file)


def _some_checkpoints(run: RunFolder) -> list[Path]:
    found = checkpoints.committed(run)
    if not found:
        raise UserError(f"{run.path} has no checkpoint yet; train first")
    return found


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


def _size_bytes(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except FileNotFoundError:
        return 0


def _chosen(run: RunFolder, name: str | None) -> Path:
    """The checkpoint of that name, or the newest, with all its files verified."""
    if name is None:
        path, skipped = checkpoints.newest_whole(run)
        for line in skipped:
            print(line, file=sys.stderr)
        return path
    found = {path.name: path for path in _some_checkpoints(run)}
    if name not in found:
        raise UserError(f"checkpoint={name}: {run.path} has none of that name; it has {', '.join(found)}")
    damage = checkpoints.find_damage(found[name])
    if damage:
        raise UserError(f"checkpoint={name} is damaged: {damage}; name another one of {', '.join(found)}")
    return found[name]


def _write(target: Path, card_file: Path, card: dict[str, Any], path: Path, manifest: Manifest) -> int:
    """Write both files, or neither. Returns the size of the weights' [bytes]."""
    weights = checkpoints.evaluation_weights(path, manifest)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.writing")
    try:
        record = tensor_files.write(beside, weights)
        write_atomically(card_file, json.dumps(card | {"sha256": record.sha256}, indent=1).encode() + b"\n")
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return record.size_bytes


def _card(config: Config, path: Path, manifest: Manifest, target: Path) -> dict[str, Any]:
    color = config.model.color
    layout = "float32 (N,{channels},H,W) in [-1, 1]: {meaning}"
    channels = 2 if color == "lab" else 3
    return {
        "format": 1,
        "weights": target.name,
        "averaged": checkpoints.weights_kind(checkpoints.fragments(path, manifest)) == "ema",
        "model": config.model.model_dump(mode="json"),
        "size": config.data.size,
        "input": layout.format(channels=1, meaning=INPUTS[color]),
        "output": layout.format(channels=channels, meaning=OUTPUTS[color]),
        "load": HOW_TO_LOAD.format(card=target.with_suffix(".json").name, weights=target.name),
        "images_seen": manifest.images_seen,
        "snapshot_epoch": manifest.snapshot_epoch,
        "photos": manifest.photos,
        "versions": manifest.versions,
        "commit": manifest.commit,
    }


if __name__ == "__main__":
    sys.exit(cli.run(app))
