"""What DeepSpeed is told: the run's config, with a JSON file of the user's own laid beside it."""

import json
from pathlib import Path
from typing import Any

from hpc_recolor.config import Config
from hpc_recolor.config_file import leaves, merge
from hpc_recolor.runtime.errors import UserError

# What the run's config says already, or what its checkpoints could not hold.
NOT_FOR_USERS = {
    "optimizer": "the run trains with Adam; see train.lr and train.betas",
    "scheduler": "see train.lr and train.lr_constant",
    "fp16": "see train.precision",
    "bf16": "see train.precision",
    "amp": "see train.precision",
    "torch_autocast": "see train.precision",
    "zero_optimization.offload_optimizer": "checkpoints hold no offloaded state",
    "zero_optimization.offload_param": "checkpoints hold no offloaded state",
}


def deepspeed_config(config: Config, ranks: int) -> dict[str, Any]:
    """What DeepSpeed is told on so many ranks. Said in full where its own default would change the mathematics.

    Raises UserError if the user's file cannot be read, or contradicts the run's config.
    """
    train = config.train
    ours = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // ranks // train.accumulate,
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": train.clip_norm,  # DeepSpeed's own is 1.0: a tenth of the generator's gradient
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        # Gradients are averaged in float32, whatever the forward pass computed in.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU at every forward and step
    }
    return _merged(ours, _read(config.deepspeed.config)) if config.deepspeed.config else ours


def _read(file: Path) -> dict[str, Any]:
    where = f"deepspeed.config={file}"
    try:
        tree = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; name a JSON file") from None
    except ValueError as error:
        raise UserError(f"{where}: no legal JSON ({error}); see DeepSpeed's configuration") from None
    if not isinstance(tree, dict):
        raise UserError(f"{where}: holds a {type(tree).__name__}; DeepSpeed's configuration is an object")
    for key, reason in NOT_FOR_USERS.items():
        if any(leaf == key or leaf.startswith(f"{key}.") for leaf, _ in leaves(tree)):
            raise UserError(f"{where}: {key} cannot be set there: {reason}")
    return tree


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; "auto" takes our value. Raises UserError that names every key with two values."""
    said, conflicts = dict(leaves(ours)), []
    for key, value in leaves(theirs):
        if key in said and value != "auto" and value != said[key]:
            conflicts.append(f"{key}: {value} there, {said[key]} by the run's config")
    if conflicts:
        raise UserError(f"deepspeed.config contradicts the run: {'; '.join(conflicts)}; take these keys out")
    return merge(theirs, ours)
