"""Run folders as training leaves them, with networks that a test may change, and without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.data.sets import old_fingerprint
from hpc_recolor.data.sources import find_photos
from hpc_recolor.evaluation.checkpoint_choice import choose
from hpc_recolor.evaluation.evaluation import EvaluationOptions, Evaluator
from hpc_recolor.evaluation.perceptual import Perceptual
from hpc_recolor.evaluation.photographs import find_photographs
from hpc_recolor.evaluation.results import Evaluation, evaluation_file
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.run_folder import checkpoint_writer, checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import write
from hpc_recolor.runtime.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
PER_EPOCH = 10

Change = Callable[[nn.Module], None]


def networks(config: Config) -> dict[str, nn.Module]:
    """Generator and discriminator, with BatchNorm statistics as after training; the same each time."""
    torch.manual_seed(0)
    both: dict[str, nn.Module] = {
        "generator": build_generator(config.model, config.data.size),
        "discriminator": build_discriminator(config.model),
    }
    for network in both.values():
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return both


def without_color(generator: nn.Module) -> None:
    """Set all weights to 0: the output is 0 everywhere."""
    for parameter in generator.parameters():
        nn.init.zeros_(parameter)


def make_run(folder: Path, photos: Path, color: str = "lab") -> Path:
    """A run that is evaluated on all of `photos`, without checkpoints; `add_checkpoint` adds them."""
    config = load_config(
        None,
        {
            "run": {"folder": str(folder.parent), "name": folder.name},
            "data": {"photos": str(photos), "held_out": str(photos), "size": 32},
            "model": {"width": 2, "color": color},
        },
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    row = {"kind": "train", "images_seen": 5 * PER_EPOCH, "epoch": 5.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"kind": "tr')
    return folder


def add_checkpoint(
    run: Path, images_seen: int, snapshot_epoch: int | None = None, change: Change | None = None, ema: bool = True
) -> Path:
    """Commit a checkpoint of the networks, whose raw generator weights are half of the averaged ones.

    change: applied to the generator first; ema: whether an average is kept.
    """
    config = load_config(run / "config.yaml", {})
    tensors: dict[str, torch.Tensor] = {}
    parameters = {}
    both = networks(config)
    if change:
        change(both["generator"])
    for network, module in both.items():
        for name, parameter in module.named_parameters():
            flat = parameter.detach().reshape(-1)
            halved = ema and network == "generator"
            tensors[f"{network}/weight/{name}@0"] = flat / 2 if halved else flat
            if halved:
                tensors[f"{network}/ema/{name}@0"] = flat
            parameters[f"{network}/{name}"] = list(parameter.shape)
        tensors |= {f"{network}/averaged/{name}": buffer for name, buffer in module.named_buffers()}
    folder = RunFolder(run)
    beside = checkpoint_writer.begin(folder)
    contents = {checkpoints.shard_file(0, 1): tensors, checkpoints.rank_file(0, 1): {"random": torch.zeros(1)}}
    photos = config.data.photos
    manifest = Manifest.model_validate(
        {
            "images_seen": images_seen,
            "snapshot_epoch": snapshot_epoch,
            "world_size": 1,
            "zero_stage": 0,
            "photos": old_fingerprint(photos, find_photos(photos, "photos")) if photos else "",
            "progress": {},
            "versions": {},
            "config": {},
            "parameters": parameters,
            "files": {name: write(beside / name, content) for name, content in contents.items()},
        }
    )
    return checkpoint_writer.commit(folder, beside, manifest)


def evaluate(run: Path, perceptual: Perceptual | None = None, **given: Any) -> list[tuple[bool, Evaluation]]:
    """Measure checkpoints in this process: for each, whether it was measured already, and its evaluation."""
    options, folder = EvaluationOptions(**given), RunFolder(run)
    config = load_config(folder.config, {})
    chosen = choose(folder, options.epochs, options.raw)
    photographs = find_photographs(config, options.data, chosen[-1].photos, ALONE)
    evaluator = Evaluator(folder.path, config, options, ALONE, perceptual or Perceptual(), photographs, {})
    return [evaluator.run_one(choice) for choice in chosen]


def write_front(run: Path, data: str, images_seen: int, front: dict[float, float]) -> None:
    """An evaluation with CIEDE2000 by vividness, beside a gray copy's of 10."""
    protocol = {"data": data, "images": 1, "fingerprint": data, "size": 32, "fit": "crop", "color": "lab"}
    evaluation = Evaluation.model_validate(
        {
            "format": 1,
            "protocol": protocol | {"images_seen": images_seen},
            "rows": {"gray": {"ciede2000": 10.0}},
            "front": [{"vividness": key, "ciede2000": value, "colorfulness": 0} for key, value in front.items()],
        }
    )
    file = evaluation_file(run, data, f"images-{images_seen}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(evaluation.to_json())


def read_json(run: Path, data: str, stem: str) -> dict[str, Any]:
    """An evaluation file as plain JSON."""
    content: dict[str, Any] = json.loads((run / "evaluations" / data / f"{stem}.json").read_text())
    return content
