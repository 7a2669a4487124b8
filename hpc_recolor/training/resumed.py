"""What a checkpoint says of the run that it is of, and of the machine that it was computed on."""

from pathlib import Path

import torch

from hpc_recolor.config import OF_DATA_SET, Config, policies
from hpc_recolor.config_file import leaves
from hpc_recolor.data.pipeline import chosen_loader
from hpc_recolor.run_folder.checkpoints import read_manifest
from hpc_recolor.runtime.errors import UserError


def computed_with(config: Config, device: str) -> dict[str, str]:
    """What decides the bits of a run and is left to the machine by its config: device, loader, and a CPU's threads."""
    threads = {"threads": str(torch.get_num_threads())} if device == "cpu" else {}
    return {"device": device, "loader": chosen_loader(config.data), **threads}


def check_resumed(checkpoint: Path, config: Config, device: str) -> str:
    """A line about what has changed of the machine, "" if nothing has. Raises UserError if the checkpoint is of a run
    with another config, as one that was copied into the wrong folder."""
    manifest = read_manifest(checkpoint)
    changes = _changes(dict(leaves(manifest.config)), dict(leaves(config.model_dump(mode="json"))), config)
    if changes:
        raise UserError(
            f"checkpoint {checkpoint}",
            f"is of another run ({'; '.join(changes)})",
            "remove it, or restore the folder that it was copied from",
        )
    before, now = manifest.computed_with, computed_with(config, device)
    other = [f"{key} {now[key]} in place of {value}" for key, value in before.items() if now.get(key, value) != value]
    return f"resumed with {', '.join(other)}: results may differ by rounding" if other else ""


def _changes(before: dict[str, object], now: dict[str, object], config: Config) -> list[str]:
    """Fields with another value that no run may change. Earlier versions recorded what a data set decides wrongly."""
    decided = [f"data.{key}" for key in OF_DATA_SET] if config.data.shards else []
    return [
        f"{key}: {before[key]} -> {now[key]}"
        for key, policy in policies().items()
        if not policy.may_change and key not in decided and key in before and before[key] != now[key]
    ]
