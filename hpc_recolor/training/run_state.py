"""Save and restore a run's whole state: both networks, one commit, on any number of ranks and at any ZeRO stage."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine.deepspeed_engine import Engines
from hpc_recolor.training.engine.engine_state import averaged_buffers, load, owned, shapes, steps

EMA = "ema"


@dataclass
class Position:
    """Where a run stands, beside its networks. losses_sum, of steps_unread steps, is this rank's own."""

    losses_sum: Tensor
    images_seen: int = 0
    steps_unread: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0

    def numbers(self) -> dict[str, float | int]:
        """What all ranks agree on."""
        return {name: getattr(self, name) for name in ("steps_unread", "bad_steps", "bad_in_a_row")}


@dataclass(frozen=True)
class Training:
    """All that a checkpoint holds."""

    engines: Engines
    average: MovingAverage | None
    position: Position


def restore(run: RunFolder, training: Training, photos: str, world: World) -> Path | None:
    """Bring a run to its newest whole checkpoint, and return that; None if it has none yet. All ranks together.

    On as many ranks as it was saved on, with as many threads, a run on CPUs goes on to the bit; on others BatchNorm's
    statistics are the mean over the old ranks and dropout draws anew. Damaged checkpoints are named and skipped.
    Raises UserError if all are damaged or gone, or the newest whole one is of other photographs or networks.
    """
    found = on_main(world, lambda: checkpoints.committed(run))
    for path in reversed(found):
        damage = _find_damage(path, world)
        if damage is None:
            _load(path, training, photos, world)
            return path
        if world.is_main:
            print(f"checkpoint {path} is damaged and skipped: {damage}", file=sys.stderr)
    if found:
        raise UserError(
            f"run.name={run.path.name}: all {len(found)} checkpoints of {run.path} are damaged, see above; "
            f"bring one back from a copy, or remove {run.checkpoints} to start from nothing"
        )
    if on_main(world, lambda: _had_checkpoints(run)):
        raise UserError(
            f"run.name={run.path.name}: {run.metrics} tells of checkpoints, but there are none in {run.checkpoints}; "
            f"bring them back, or remove {run.metrics} to start from nothing"
        )
    return None


def _had_checkpoints(run: RunFolder) -> bool:
    return run.metrics.exists() and any(row["kind"] == "checkpoint" for row in read_metrics(run.metrics))


def shard_tensors(training: Training, world: World) -> dict[str, Tensor]:
    """Live tensors that this rank saves for all, by their keys in a shard file. All ranks call it together."""
    tensors: dict[str, Tensor] = {}
    for network, engine in training.engines.items():
        for fragment in owned(engine, world):
            for kind, tensor in fragment.tensors.items():
                tensors[f"{network}/{kind}/{fragment.name}@{fragment.start}"] = tensor
        averaged = averaged_buffers(engine, world)
        if world.is_main:
            tensors |= {f"{network}/averaged/{name}": value for name, value in averaged.items()}
    if training.average:
        for fragment, value in zip(training.average.fragments, training.average.averages, strict=True):
            tensors[f"generator/{EMA}/{fragment.name}@{fragment.start}"] = value
    return {key: tensor.reshape(-1) if "@" in key else tensor for key, tensor in tensors.items()}


def rank_tensors(training: Training, world: World) -> dict[str, Tensor]:
    """This rank's own: random states, BatchNorm's statistics, and the losses it has not told yet."""
    tensors = {"random": torch.get_rng_state(), "losses_sum": training.position.losses_sum}
    if world.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(world.device)
    for network, engine in training.engines.items():
        tensors |= {f"{network}/buffer/{name}": buffer for name, buffer in engine.module.named_buffers()}
    return tensors


def state_numbers(training: Training) -> dict[str, float | int]:
    """What of the state is no tensor and the same on all ranks."""
    numbers = training.position.numbers()
    for network, engine in training.engines.items():
        numbers[f"{network}.steps"] = steps(engine)
        numbers[f"{network}.loss_scale"] = engine.loss_scale
        numbers[f"{network}.good_steps"] = engine.good_steps
    return numbers


def parameter_shapes(engines: Engines) -> dict[str, list[int]]:
    """The whole shapes of both networks' parameters, by network/NAME."""
    return {f"{network}/{name}": shape for network, engine in engines.items() for name, shape in shapes(engine).items()}


def _load(path: Path, training: Training, photos: str, world: World) -> None:
    manifest = checkpoints.read_manifest(path)
    _check_fits(path, manifest, training, photos)
    saved, numbers = checkpoints.fragments(path, manifest), manifest.progress
    for network, engine in training.engines.items():

        def read(kind: str, name: str, start: int, numel: int, network: str = network) -> Tensor:
            return saved.read_range(network, kind, name, start, numel)

        load(engine, int(numbers[f"{network}.steps"]), read)
        engine.module.load_state_dict(saved.averaged(network), strict=False)
        engine.loss_scale = float(numbers[f"{network}.loss_scale"])
        engine.good_steps = int(numbers[f"{network}.good_steps"])
    if training.average:
        kind = checkpoints.weights_kind(saved)
        for fragment, value in zip(training.average.fragments, training.average.averages, strict=True):
            flat = saved.read_range("generator", kind, fragment.name, fragment.start, fragment.numel)
            value.copy_(flat.view_as(value))
    position = training.position
    position.images_seen = manifest.images_seen
    position.bad_steps, position.bad_in_a_row = int(numbers["bad_steps"]), int(numbers["bad_in_a_row"])
    if manifest.world_size == world.size:
        position.steps_unread = int(numbers["steps_unread"])
        _load_rank(path / checkpoints.rank_file(world.rank, world.size), training, world)
    else:
        torch.manual_seed(manifest.images_seen * 2**16 + world.rank)


def _load_rank(file: Path, training: Training, world: World) -> None:
    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        for network, engine in training.engines.items():
            own = {name: tensors.get_tensor(f"{network}/buffer/{name}") for name, _ in engine.module.named_buffers()}
            engine.module.load_state_dict(own, strict=False)
        training.position.losses_sum.copy_(tensors.get_tensor("losses_sum"))
        torch.set_rng_state(tensors.get_tensor("random"))
        if "random_cuda" in keys and world.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.get_tensor("random_cuda"), world.device)


def _check_fits(path: Path, manifest: Manifest, training: Training, photos: str) -> None:
    if manifest.photos != photos:
        raise UserError(
            f"checkpoint {path} was trained on other photographs: restore the folder, or give a new run.name"
        )
    ours = parameter_shapes(training.engines)
    for name in ours | manifest.parameters:
        if ours.get(name) != manifest.parameters.get(name):
            raise UserError(
                f"{path} does not fit the config: {name} is {manifest.parameters.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} by the config; restore the config.yaml it was trained with"
            )


def _find_damage(path: Path, world: World) -> str | None:
    """What is wrong with a checkpoint; ranks share the reading, and all get the same answer."""

    def files() -> tuple[list[str], str | None]:
        damage = checkpoints.find_damage(path, [])
        return (sorted(checkpoints.read_manifest(path).files), None) if damage is None else ([], damage)

    names, damage = on_main(world, files)
    if damage is None:
        found = gather(world, checkpoints.find_damage(path, names[world.rank :: world.size]))
        damage = next(filter(None, found), None)
    return damage
