"""Writes a run's checkpoints beside training: a copy of the state, files from all ranks, one commit."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.run_folder import checkpoint_writer, checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.files import FileRecord
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import write
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.distributed import World, gather, on_main, ranks_here
from hpc_recolor.runtime.process import memory_bytes
from hpc_recolor.training.run_state import Training, parameter_shapes, rank_tensors, shard_tensors, state_numbers

VERSIONS_OF = ("deepspeed", "triton", "numpy")

Result = TypeVar("Result")


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
        self.versions = {"hpc_recolor": PACKAGE_VERSION, "torch": torch.__version__} | {
            name: version(name) for name in VERSIONS_OF
        }
        self.code_commit = code_commit() if world.is_main else None

    @property
    def is_writing(self) -> bool:
        """Whether this rank has not yet written all of its part."""
        return self.saving is not None and not self.saving.files.done()

    def start(self, training: Training, snapshot_epoch: int | None = None) -> None:
        """Begin a checkpoint of the state as it is now. Raises OSError on all ranks if its folder cannot be made."""
        started_s = time.monotonic()
        beside = _on_main_with_os_errors(self.world, lambda: checkpoint_writer.begin(self.run))
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
            path = checkpoint_writer.commit(self.run, saving.beside, Manifest(**saving.facts, files=files))
            try:
                checkpoint_writer.prune(self.run, self.config.checkpoint.keep, path)
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
