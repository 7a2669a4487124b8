"""Builds the DeepSpeed config from the run's config and an optional JSON file of the user."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_recolor.config import Config
from hpc_recolor.config_file import leaves, merge
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json

if TYPE_CHECKING:
    from torch import nn

# Set by the run's config already, or not supported by its checkpoints.
RESERVED_KEYS = {
    "optimizer": "the run trains with Adam; see train.lr and train.betas",
    "scheduler": "see train.lr and train.lr_constant",
    "fp16": "see train.precision",
    "bf16": "see train.precision",
    "amp": "see train.precision",
    "torch_autocast": "see train.precision",
    "zero_optimization.offload_optimizer": "checkpoints hold no offloaded state",
    "zero_optimization.offload_param": "checkpoints hold no offloaded state",
}

# What DeepSpeed does in its own forward, backward and step, which run at ZeRO 1 to 3 alone.
ONLY_ABOVE_STAGE_0 = (
    *("flops_profiler", "wall_clock_breakdown", "memory_breakdown", "tensorboard", "wandb", "csv_monitor", "comet"),
    *("curriculum_learning", "data_efficiency", "progressive_layer_drop", "eigenvalue", "compression_training"),
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op"),
    "sparse_gradients",
)

DEFAULT_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size [gradients]


def deepspeed_config(config: Config, ranks: int) -> dict[str, Any]:
    """The DeepSpeed config for this number of ranks. Explicit where DeepSpeed's default would change the mathematics.

    Raises UserError if the user's file cannot be read, or contradicts the run's config.
    """
    train = config.train
    ours = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // ranks // train.accumulate,
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": train.clip_norm,  # DeepSpeed's default of 1.0 scales the generator's gradient to a tenth
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        # Gradients are averaged in float32, whatever the precision of the forward pass.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU at every forward and step
    }
    if config.deepspeed.config is None:
        return ours
    theirs = _read(config.deepspeed.config)
    if config.deepspeed.zero_stage == 0:
        _check_is_used(theirs, config.deepspeed.config)
    return _merged(ours, theirs)


def with_bucket(settings: dict[str, Any], network: "nn.Module") -> dict[str, Any]:
    """The DeepSpeed config with a buffer for averages of gradients, at ZeRO 1 to 3, that is no larger than the network.

    DeepSpeed's default takes 2 GB, whatever the network. What the user's file sets is kept.
    """
    numel = sum(parameter.numel() for parameter in network.parameters())
    zero = {"reduce_bucket_size": min(numel, DEFAULT_BUCKET)} | settings["zero_optimization"]
    return settings | {"zero_optimization": zero}


def _read(file: Path) -> dict[str, Any]:
    subject = f"deepspeed.config={file}"
    try:
        tree = parse_json(file.read_bytes())
    except OSError as error:
        raise UserError(subject, str(error.strerror), "name a JSON file") from None
    except ValueError as error:
        raise UserError(subject, f"not valid JSON ({error})", "see DeepSpeed's configuration") from None
    if not isinstance(tree, dict):
        raise UserError(subject, f"contains a {type(tree).__name__}, not an object", "see DeepSpeed's configuration")
    for key, reason in RESERVED_KEYS.items():
        if any(leaf == key or leaf.startswith(f"{key}.") for leaf, _ in leaves(tree)):
            raise UserError(subject, f"{key} cannot be set there: {reason}", "remove it")
    return tree


def _check_is_used(tree: dict[str, Any], file: Path) -> None:
    """Raises UserError that names every key that has no effect at ZeRO 0."""
    unused = [key for key in ONLY_ABOVE_STAGE_0 if _is_on(tree.get(key))]
    if unused:
        raise UserError(
            f"deepspeed.config={file}",
            f"{', '.join(unused)}: without effect at deepspeed.zero_stage=0, where the step does not run in DeepSpeed",
            "remove these keys, or use deepspeed.zero_stage=1",
        )


def _is_on(value: Any) -> bool:
    return bool(value.get("enabled", True) if isinstance(value, dict) else value)


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; "auto" takes our value. Raises UserError that names every key with two values."""
    set_by_run, conflicts = dict(leaves(ours)), []
    for key, value in leaves(theirs):
        if key in set_by_run and value not in ("auto", set_by_run[key]):
            conflicts.append(f"{key}: {value} there, {set_by_run[key]} by the run's config")
    if conflicts:
        raise UserError("deepspeed.config", f"contradicts the run: {'; '.join(conflicts)}", "remove these keys")
    return merge(theirs, ours)
