"""Save and restore a run's whole state: both networks, one commit, on any number of ranks and at any ZeRO stage."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

import hpc_recolor
from hpc_recolor import checkpoints
from hpc_recolor.checkpoints import Manifest
from hpc_recolor.config import Config
from hpc_recolor.distributed import World, gather, memory_bytes, on_main, ranks_here
from hpc_recolor.errors import UserError
from hpc_recolor.run_folder import FileRecord, RunFolder
from hpc_recolor.tensor_files import write
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine import Engines
from hpc_recolor.training.engine_state import averaged_buffers, load, owned, shapes, steps

EMA = "ema"
VERSIONS_OF = ("deepspeed", "triton", "numpy")

Result = TypeVar("Result")


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


@dataclass(frozen=True)
class Saving:
    """A checkpoint on its way to disk. facts: its manifest, but for the files."""

    beside: Path
    facts: dict[str, Any]
    files: "Future[dict[str, FileRecord]]"
    started_s: float
    stalled_s: float


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint: how large it is over all ranks, how long it took, and how long training waited."""

    images_seen: int
    size_mb: float
    elapsed_s: float
    stalled_s: float
    complaint: str | None


class Saver:
    """Writes a run's checkpoints, one at a time, beside training where memory allows. All ranks call it together."""

    def __init__(self, run: RunFolder, config: Config, photos: str, world: World) -> None:
        self.run, self.config, self.photos, self.world = run, config, photos, world
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.saving: Saving | None = None
        self.saved_images = 0
        self.versions = {"hpc_recolor": hpc_recolor.__version__, "torch": torch.__version__} | {
            name: version(name) for name in VERSIONS_OF
        }
        self.code_commit = _code_commit() if world.is_main else None

    @property
    def is_writing(self) -> bool:
        """Whether this rank has not yet written all of its part."""
        return self.saving is not None and not self.saving.files.done()

    def start(self, training: Training, snapshot_epoch: int | None = None) -> None:
        """Begin a checkpoint of the state as it is now. Raises OSError on all ranks if its folder cannot be made."""
        started_s = time.monotonic()
        beside = _on_main_with_os_errors(self.world, lambda: checkpoints.begin(self.run))
        shard, rank = shard_tensors(training, self.world), rank_tensors(training, self.world)
        in_background = self.config.checkpoint.background and _has_room_for(shard)
        shard, rank = (_on_host(tensors, copy=in_background) for tensors in (shard, rank))
        files = self.thread.submit(self._write, beside, shard, rank)
        if not in_background:
            wait([files])
        facts = self._facts(training) | {"snapshot_epoch": snapshot_epoch}
        self.saving = Saving(beside, facts, files, started_s, time.monotonic() - started_s)

    def finish(self) -> Saved:
        """Wait for all ranks' files of the checkpoint that was begun, commit it and prune.

        Raises OSError on all ranks, with the checkpoints there are left alone, if a rank could not write.
        """
        assert self.saving is not None
        saving, self.saving = self.saving, None
        began_s = time.monotonic()
        shares = gather(self.world, _outcome(saving.files))
        for rank, share in enumerate(shares):
            if isinstance(share, str):
                raise OSError(f"rank {rank}: {share}")
        files = {name: record for share in shares if isinstance(share, dict) for name, record in share.items()}

        def commit() -> str | None:
            path = checkpoints.commit(self.run, saving.beside, Manifest(**saving.facts, files=files))
            try:
                checkpoints.prune(self.run, self.config.checkpoint.keep, path)
            except OSError as error:
                return f"an old checkpoint could not be removed: {_describe(error)}"
            return None

        complaint = _on_main_with_os_errors(self.world, commit)
        self.saved_images = saving.facts["images_seen"]
        now_s = time.monotonic()
        size_mb = sum(record.size_bytes for record in files.values()) / 1e6
        return Saved(
            self.saved_images, size_mb, now_s - saving.started_s, saving.stalled_s + now_s - began_s, complaint
        )

    def close(self) -> None:
        """Let the thread go; what is not committed is lost."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def _facts(self, training: Training) -> dict[str, Any]:
        return {
            "images_seen": training.position.images_seen,
            "world_size": self.world.size,
            "zero_stage": self.config.deepspeed.zero_stage,
            "photos": self.photos,
            "progress": state_numbers(training),
            "versions": self.versions,
            "commit": self.code_commit,
            "config": self.config.model_dump(mode="json"),
            "parameters": parameter_shapes(training.engines),
        }

    def _write(self, beside: Path, shard: Mapping[str, Tensor], rank: Mapping[str, Tensor]) -> dict[str, FileRecord]:
        place = self.world.rank, self.world.size
        contents = {checkpoints.shard_file(*place): shard, checkpoints.rank_file(*place): rank}
        return {name: write(beside / name, tensors) for name, tensors in contents.items()}


def restore(run: RunFolder, training: Training, photos: str, world: World) -> Path | None:
    """Bring a run to its newest whole checkpoint, and return that; None if it has none yet. All ranks together.

    On as many ranks as it was saved on, with as many threads, a run on CPUs goes on to the bit; on others BatchNorm's
    statistics are the mean over the old ranks and dropout draws anew. Damaged checkpoints are named and skipped.
    Raises UserError if all are damaged, or the newest whole one is of other photographs or networks.
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
    return None


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


def _on_main_with_os_errors(world: World, action: Callable[[], Result]) -> Result:
    """As `on_main`, but an OSError there is raised as one everywhere."""

    def attempt() -> tuple[Any, str | None]:
        try:
            return action(), None
        except OSError as error:
            return None, _describe(error)

    result, problem = on_main(world, attempt)
    if problem:
        raise OSError(problem)
    done: Result = result
    return done


def _outcome(files: "Future[dict[str, FileRecord]]") -> dict[str, FileRecord] | str:
    error = files.exception()  # waits
    if error is None:
        return files.result()
    if isinstance(error, OSError):
        return _describe(error)
    raise error


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _has_room_for(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the ranks of this machine can all hold a copy, and leave as much free."""
    needed = sum(tensor.nbytes for tensor in tensors.values()) * ranks_here()
    return 2 * needed < memory_bytes()[0]


def _on_host(tensors: Mapping[str, Tensor], copy: bool) -> dict[str, Tensor]:
    """The tensors in this machine's memory; copy: in memory of their own, which training does not change."""
    return {key: tensor.detach().to("cpu", copy=copy) for key, tensor in tensors.items()}


def _code_commit() -> str | None:
    """None where the code lies in no git repository."""
    command = ["git", "-C", str(Path(hpc_recolor.__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
