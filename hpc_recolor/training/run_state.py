"""Capture and restore a run's whole state: both networks, one commit, on any number of ranks and at any ZeRO stage."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.run_folder.tensor_files import Fragments
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.engine.engine import Engine, Engines
from hpc_recolor.training.engine.engine_state import adam_step, averaged_buffers, load, owned, shapes
from hpc_recolor.training.step import StepLosses

EMA = "ema"


@dataclass
class Counters:
    """How far a run is, beside its networks.

    losses_sum: this rank's sum of the losses of good steps, in the order of StepLosses, which the device adds up.
    unlogged_steps: how many these are. bad_steps: steps with a loss or gradient that was not finite; bad_in_a_row:
    those since the last good one. All three count steps whose verdicts were read. validation_interval: images between
    two validations, as chosen from the speed of the run; 0 until then.
    """

    losses_sum: Tensor
    images_seen: int = 0
    unlogged_steps: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    validation_interval: int = 0

    def add_good_step(self) -> None:
        """Count a step that changed the weights, and whose losses are in the sum."""
        self.unlogged_steps += 1
        self.bad_in_a_row = 0

    def add_bad_step(self) -> None:
        """Count a step that was skipped."""
        self.bad_steps += 1
        self.bad_in_a_row += 1

    def take_mean_losses(self) -> Tensor:
        """This rank's mean losses (4,) since the last call, which start again at zero."""
        mean = self.losses_sum / self.unlogged_steps
        self.losses_sum.zero_()
        self.unlogged_steps = 0
        return mean


SamePhotos = Callable[[str], bool]


@dataclass(frozen=True)
class RunState:
    """Everything that a checkpoint holds. average: of the generator's weights, None without train.ema_half_life."""

    engines: Engines
    average: MovingAverage | None
    counters: Counters

    @classmethod
    def initial(cls, config: Config, world: World, alone: bool = False) -> "RunState":
        """The state before the first step. All ranks call it together; alone: as for `build_engines`."""
        engines, half_life = build_engines(config, world, alone), config.train.ema_half_life
        average = MovingAverage(owned(engines.generator, world), half_life) if half_life else None
        return cls(engines, average, Counters(torch.zeros(len(StepLosses._fields), device=world.device)))


def restore(run: RunFolder, state: RunState, same_photos: SamePhotos, world: World) -> Path | None:
    """Load the newest whole checkpoint of a run into `state`, and return its folder; None if there is none yet.

    All ranks call it together. same_photos: whether a fingerprint is of the photographs to learn from. On as many ranks
    as it was saved on, with as many threads, a run on CPUs continues bit for bit; on others BatchNorm's statistics are
    the mean over the old ranks and dropout draws anew. Damaged checkpoints are reported and skipped. Raises UserError
    if all are damaged or gone, or the newest whole one belongs to other photographs or networks.
    """
    found = on_main(world, lambda: checkpoints.committed(run))
    for path in reversed(found):
        damage = _find_damage(path, world)
        if damage is None:
            _load(path, state, same_photos, world)
            return path
        if world.is_main:
            print(f"checkpoint {path} is damaged and skipped: {damage}", file=sys.stderr)
    if found:
        raise UserError(
            f"run.name={run.path.name}",
            f"all {len(found)} checkpoints are damaged, see above",
            f"restore one from a copy, or remove {run.checkpoints} to start from scratch",
        )
    if on_main(world, lambda: _had_checkpoints(run)):
        raise UserError(
            f"run.name={run.path.name}",
            f"{run.metrics} lists checkpoints, but there are none in {run.checkpoints}",
            f"restore them, or remove {run.metrics} to start from scratch",
        )
    return None


def _had_checkpoints(run: RunFolder) -> bool:
    return run.metrics.exists() and any(row["kind"] == "checkpoint" for row in read_metrics(run.metrics))


def shard_tensors(state: RunState, world: World) -> dict[str, Tensor]:
    """Live tensors that this rank saves for all, by their keys in a shard file. All ranks call it together."""
    tensors: dict[str, Tensor] = {}
    for network, engine in state.engines.items():
        for fragment in owned(engine, world):
            for kind, tensor in fragment.tensors.items():
                tensors[f"{network}/{kind}/{fragment.name}@{fragment.start}"] = tensor
        averaged = averaged_buffers(engine, world)
        if world.is_main:
            tensors |= {f"{network}/averaged/{name}": value for name, value in averaged.items()}
    if state.average:
        for fragment, value in zip(state.average.fragments, state.average.averages, strict=True):
            tensors[f"generator/{EMA}/{fragment.name}@{fragment.start}"] = value
    return {key: tensor.reshape(-1) if "@" in key else tensor for key, tensor in tensors.items()}


def rank_tensors(state: RunState, world: World) -> dict[str, Tensor]:
    """Tensors of this rank alone: random states, BatchNorm's statistics, and the losses not yet logged."""
    tensors = {"random": torch.get_rng_state(), "losses_sum": state.counters.losses_sum}
    if world.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(world.device)
    for network, engine in state.engines.items():
        tensors |= {f"{network}/buffer/{name}": buffer for name, buffer in engine.module.named_buffers()}
    return tensors


def number_tensors(state: RunState) -> dict[str, Tensor]:
    """Copies () of what the device counts, the same on all ranks, under the names of a manifest's `progress`."""
    return {
        f"{network}.{name}": tensor.clone()
        for network, engine in state.engines.items()
        for name, tensor in (
            ("steps", adam_step(engine)),
            ("loss_scale", engine.loss_scale),
            ("good_steps", engine.good_steps),
        )
    }


def read_numbers(tensors: dict[str, Tensor]) -> dict[str, float | int]:
    """The numbers in `number_tensors`, once they are in host memory."""
    return {name: float(value) if name.endswith("loss_scale") else int(value) for name, value in tensors.items()}


def count_state(state: RunState) -> dict[str, float | int]:
    """What the host counts, the same on all ranks, under the names of a manifest's `progress`."""
    counters = state.counters
    return {
        "steps_unread": counters.unlogged_steps,
        "bad_steps": counters.bad_steps,
        "bad_in_a_row": counters.bad_in_a_row,
        "validation_interval": counters.validation_interval,
    }


def parameter_shapes(engines: Engines) -> dict[str, list[int]]:
    """The full shapes of both networks' parameters, by network/NAME."""
    return {f"{network}/{name}": shape for network, engine in engines.items() for name, shape in shapes(engine).items()}


def _load(path: Path, state: RunState, same_photos: SamePhotos, world: World) -> None:
    manifest = checkpoints.read_manifest(path)
    _check_fits(path, manifest, state, same_photos)
    saved = checkpoints.fragments(path, manifest)
    for network, engine in state.engines.items():
        _load_engine(network, engine, saved, manifest)
    if state.average:
        _load_average(state.average, saved)
    counters, scalars = state.counters, manifest.progress
    counters.images_seen = manifest.images_seen
    counters.bad_steps, counters.bad_in_a_row = int(scalars["bad_steps"]), int(scalars["bad_in_a_row"])
    counters.validation_interval = int(scalars.get("validation_interval", 0))  # earlier versions chose none
    if manifest.world_size == world.size:
        counters.unlogged_steps = int(scalars["steps_unread"])
        _load_rank(path / checkpoints.rank_file(world.rank, world.size), state, world)
    else:
        torch.manual_seed(manifest.images_seen * 2**16 + world.rank)


def _load_engine(network: str, engine: Engine, saved: Fragments, manifest: Manifest) -> None:
    def read(kind: str, name: str, start: int, numel: int) -> Tensor:
        return saved.read_range(network, kind, name, start, numel)

    scalars = manifest.progress
    load(engine, int(scalars[f"{network}.steps"]), read)
    engine.module.load_state_dict(saved.averaged(network), strict=False)
    engine.loss_scale.fill_(float(scalars[f"{network}.loss_scale"]))
    engine.good_steps.fill_(int(scalars[f"{network}.good_steps"]))


def _load_average(average: MovingAverage, saved: Fragments) -> None:
    kind = checkpoints.weights_kind(saved)
    for fragment, value in zip(average.fragments, average.averages, strict=True):
        flat = saved.read_range("generator", kind, fragment.name, fragment.start, fragment.numel)
        value.copy_(flat.view_as(value))


def _load_rank(file: Path, state: RunState, world: World) -> None:
    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        for network, engine in state.engines.items():
            own = {name: tensors.get_tensor(f"{network}/buffer/{name}") for name, _ in engine.module.named_buffers()}
            engine.module.load_state_dict(own, strict=False)
        state.counters.losses_sum.copy_(tensors.get_tensor("losses_sum"))
        torch.set_rng_state(tensors.get_tensor("random"))
        if "random_cuda" in keys and world.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.get_tensor("random_cuda"), world.device)


def _check_fits(path: Path, manifest: Manifest, state: RunState, same_photos: SamePhotos) -> None:
    if not same_photos(manifest.photos):
        raise UserError(
            f"checkpoint {path}", "was trained on other photographs", "restore the folder, or give a new run.name"
        )
    ours = parameter_shapes(state.engines)
    for name in ours | manifest.parameters:
        if ours.get(name) != manifest.parameters.get(name):
            raise UserError(
                f"checkpoint {path}",
                f"does not fit the config: {name} is {manifest.parameters.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} by the config",
                "restore the config.yaml it was trained with",
            )


def _find_damage(path: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, None if it is whole. Ranks share the reading, and all get the same answer."""

    def files() -> tuple[list[str], str | None]:
        damage = checkpoints.find_damage(path, [])
        return (sorted(checkpoints.read_manifest(path).files), None) if damage is None else ([], damage)

    names, damage = on_main(world, files)
    if damage is None:
        found = gather(world, checkpoints.find_damage(path, names[world.rank :: world.size]))
        damage = next(filter(None, found), None)
    return damage
