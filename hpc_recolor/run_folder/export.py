"""Export of a run's generator: safetensors, with a JSON card that says what it is and how to load it.

The card is in the header of the file, so that the file alone is enough to color photographs, and beside it.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hpc_recolor.config import ColorName, Config
from hpc_recolor.models.shapes import CONDITION_CHANNELS, PALENESS_POWER, target_channels
from hpc_recolor.run_folder import checkpoints, tensor_files
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.files import rename_over, sha256_of, temporary_name, write_atomically
from hpc_recolor.run_folder.folder import open_run
from hpc_recolor.runtime.errors import UserError, cannot_write
from hpc_recolor.runtime.json_text import parse_json

if TYPE_CHECKING:
    from torch import Tensor

CARD = "card"  # its key in the header

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
generator.load_state_dict(load_file("{weights}"))  # float16 becomes float32
generator.eval()
"""


@dataclass(frozen=True)
class Export:
    """The two files of an export, the images that the generator was trained on, and the size of its weights."""

    weights: Path
    card: Path
    images_seen: int
    size_bytes: int


def check_target(target: Path, replace: bool, suffix: str = ".safetensors") -> None:
    """Raises UserError unless an export may be written to `target`, *suffix. replace: even if it exists."""
    if target.suffix != suffix:
        raise UserError(f"out={target}", f"not a *{suffix} file", f"give a name that ends in {suffix}")
    for file in (target, _card_file(target)) if suffix == ".safetensors" else (target,):
        if file.exists() and not replace:
            raise UserError(f"out={target}", f"{file} exists already", "give another name, or --force to replace it")


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator's state dict, and the config to build it by. path: of the file or checkpoint; config: of an export
    the network's, and the size and fit of its photographs, in an otherwise default one without an adversarial loss;
    vividness: see `export_generator`, None in a checkpoint; card: what the file says of the generator, or would."""

    path: Path
    config: Config
    weights: "dict[str, Tensor]"
    vividness: float | None
    images_seen: int
    card: dict[str, Any]


def read_generator(source: Path) -> TrainedGenerator:
    """The generator of a run folder's newest intact checkpoint, or of a file that `export_generator` wrote.

    Raises UserError if it is neither, or no checkpoint is intact. Damaged ones are reported on stderr.
    """
    if source.is_file():
        return read_export(source)
    run, config = open_run(source)
    checkpoint, skipped = checkpoints.newest_intact(run)
    for line in skipped:
        print(line, file=sys.stderr)
    return of_checkpoint(config, checkpoint)


def of_checkpoint(config: Config, checkpoint: Path) -> TrainedGenerator:
    """The generator of a verified checkpoint."""
    manifest = checkpoints.read_manifest(checkpoint)
    weights = checkpoints.evaluation_weights(checkpoint, manifest)
    card = _card(config, checkpoint, manifest)
    return TrainedGenerator(checkpoint, config, weights, None, manifest.images_seen, card)


def read_export(file: Path) -> TrainedGenerator:
    """What `export_generator` wrote. Raises UserError if the file contains anything else."""
    fix = "name a run folder, or a file that `checkpoint export` wrote"
    try:
        with safe_open(file, framework="pt") as opened:
            card = parse_json((opened.metadata() or {})[CARD])
            names: list[str] = opened.keys()
            weights = {name: opened.get_tensor(name) for name in names}
        data = {"size": card["size"], "fit": card.get("fit", "stretch")}
        config = Config.model_validate({"model": card["model"], "data": data, "loss": {"adversarial": "none"}})
        vividness, images_seen = _vividness(card), int(card["images_seen"])
    except (SafetensorError, OSError) as error:
        raise UserError(str(file), f"not a safetensors file ({error})", fix) from None
    except (KeyError, TypeError, ValueError):
        raise UserError(str(file), "has no card of a generator in its header", fix) from None
    return TrainedGenerator(file, config, weights, vividness, images_seen, card | {"vividness": vividness})


def _vividness(card: dict[str, Any]) -> float:
    """The vividness in a card; in one of format 1, where it is a factor on chroma, what has the same effect."""
    value = float(card.get("vividness", 1.0))
    return value if card.get("format") != 1 else float(value ** (1 / PALENESS_POWER))


def export_generator(
    config: Config,
    checkpoint: Path,
    target: Path,
    *,
    half: bool = False,
    vividness: float = 1.0,
    calibrate: "Callable[[dict[str, Tensor]], dict[str, Tensor]] | None" = None,
) -> Export:
    """Write the generator of a verified checkpoint to `target`, and its card beside it. Existing files are replaced.

    half: as float16, at half the size. vividness: that `colorize` uses unless it is told another. calibrate: changes
    the state dict before.
    The weights are their moving average if the run kept one; buffers are averaged over the ranks. Raises UserError,
    with neither file written, if the disk refuses one.
    """
    manifest = checkpoints.read_manifest(checkpoint)
    card = {"format": 2, **_names(target), **_card(config, checkpoint, manifest), "vividness": vividness}
    weights = checkpoints.evaluation_weights(checkpoint, manifest)
    if calibrate:
        weights = calibrate(weights)
    if half:
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    try:
        size_bytes = _write(target, card, weights)
    except OSError as error:
        raise cannot_write(f"out={target}", error, "name a place that is writable, with enough space") from None
    return Export(target, _card_file(target), manifest.images_seen, size_bytes)


def _card_file(target: Path) -> Path:
    return target.with_suffix(".json")


def _write(target: Path, card: dict[str, Any], weights: "dict[str, Tensor]") -> int:
    """Write both files, or neither. Returns the size of the weights file [bytes]."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = temporary_name(target)
    try:
        record = tensor_files.write(written, weights, {CARD: json.dumps(card)})
        write_atomically(
            _card_file(target), json.dumps(card | {"sha256": sha256_of(written)}, indent=1).encode() + b"\n"
        )
        rename_over(written, target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    return record.size_bytes


def _names(target: Path) -> dict[str, str]:
    return {"weights": target.name, "load": HOW_TO_LOAD.format(card=_card_file(target).name, weights=target.name)}


def _card(config: Config, checkpoint: Path, manifest: Manifest) -> dict[str, Any]:
    color = config.model.color
    layout = "float32 (N,{channels},H,W) in [-1, 1]: {meaning}"
    return {
        "averaged": checkpoints.weights_kind(checkpoints.fragments(checkpoint, manifest)) == "ema",
        "model": config.model.model_dump(mode="json"),
        "size": config.data.size,
        "fit": config.data.fit,
        "input": layout.format(channels=CONDITION_CHANNELS, meaning=INPUTS[color]),
        "output": layout.format(channels=target_channels(color), meaning=OUTPUTS[color]),
        "images_seen": manifest.images_seen,
        "snapshot_epoch": manifest.snapshot_epoch,
        "photos": manifest.photos,
        "versions": manifest.versions,
        "commit": manifest.commit,
    }
