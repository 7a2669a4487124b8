"""Writes checkpoints beside training: a copy of the state, files from all ranks, one commit; removes old ones."""

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
from hpc_recolor.training.host_copies import HostCopies, HostTensors
from hpc_recolor.training.resumed import computed_with
from hpc_recolor.training.run_state import (
    RunState,
    count_state,
    number_tensors,
    parameter_shapes,
    rank_tensors,
    read_numbers,
    shard_tensors,
)

VERSIONS_OF = ("deepspeed", "triton", "numpy")

Result = TypeVar("Result")


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint that is being written. manifest: all of its manifest but the files, and the numbers in `taken`."""

    folder: Path
    manifest: dict[str, Any]
    taken: HostTensors
    files: "Future[dict[str, FileRecord]]"
    started_s: float
    stalled_s: float


@dataclass(frozen=True)
class SavedCheckpoint:
    """A committed checkpoint: its size over all ranks, how long it took, and how long training waited for it.

    warning: an error that did not prevent the commit, if any.
    """

    images_seen: int
    size_mb: float
    elapsed_s: float
    stalled_s: float
    warning: str | None


class BackgroundWriter:
    """Writes a run's checkpoints, one at a time, in the background where memory allows. All ranks call it together.

    photos: fingerprint of the photographs that the run learns from.
    """

    def __init__(self, run: RunFolder, config: Config, photos: str, world: World) -> None:
        self.run, self.config, self.photos, self.world = run, config, photos, world
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.copies = HostCopies()
        self.pending: PendingCheckpoint | None = None
        self.removal: Future[None] | None = None
        self.versions = {"hpc_recolor": PACKAGE_VERSION, "torch": torch.__version__} | {
            name: version(name) for name in VERSIONS_OF
        }
        self.code_commit = code_commit() if world.is_main else None

    @property
    def is_writing(self) -> bool:
        """Whether this rank has not yet written all of its part."""
        return self.pending is not None and not self.pending.files.done()

    def start(self, state: RunState, snapshot_epoch: int | None = None) -> None:
        """Start a checkpoint of the state as it is now. Raises OSError on all ranks if its folder cannot be made."""
        started_s = time.monotonic()
        folder = _on_main_with_os_errors(self.world, self._begin)
        shard, rank = shard_tensors(state, self.world), rank_tensors(state, self.world)
        in_background = self.config.checkpoint.background and _has_memory_for(shard)
        numbers = number_tensors(state)
        copy = self.copies.start if in_background else _on_host
        taken = copy(_in_one({"shard": shard, "rank": rank, "numbers": numbers}))
        files = self.thread.submit(self._write, folder, taken)
        if not in_background:
            wait([files])
        manifest = self._manifest(state) | {"snapshot_epoch": snapshot_epoch}
        self.pending = PendingCheckpoint(
            folder=folder,
            manifest=manifest,
            taken=taken,
            files=files,
            started_s=started_s,
            stalled_s=time.monotonic() - started_s,
        )

    def finish(self) -> SavedCheckpoint:
        """Wait for all ranks' files of the pending checkpoint, commit it and start to remove older ones.

        Raises OSError on all ranks if a rank could not write; existing checkpoints are then left alone.
        """
        assert self.pending is not None
        pending, self.pending = self.pending, None
        finish_s = time.monotonic()
        files = self._gather_files(pending)
        warning = _on_main_with_os_errors(self.world, lambda: self._commit(pending, files))
        now_s = time.monotonic()
        return SavedCheckpoint(
            images_seen=pending.manifest["images_seen"],
            size_mb=sum(record.size_bytes for record in files.values()) / 1e6,
            elapsed_s=now_s - pending.started_s,
            stalled_s=pending.stalled_s + now_s - finish_s,
            warning=warning,
        )

    def finish_removal(self) -> str | None:
        """Wait until the older checkpoints are removed. Returns a warning if one could not be; None on other ranks."""
        error = self.removal.exception() if self.removal else None
        self.removal = None
        if isinstance(error, OSError):
            return _unremoved(error)
        if error:
            raise error
        return None

    def _begin(self) -> Path:
        self.finish_removal()  # what it could not remove, `begin` tries again
        return checkpoint_writer.begin(self.run)

    def _gather_files(self, pending: PendingCheckpoint) -> dict[str, FileRecord]:
        files: dict[str, FileRecord] = {}
        for rank, share in enumerate(gather(self.world, _outcome(pending.files))):
            if isinstance(share, str):
                raise OSError(f"rank {rank}: {share}")
            files |= share
        return files

    def _commit(self, pending: PendingCheckpoint, files: dict[str, FileRecord]) -> str | None:
        """Commit on rank 0. Returns a warning if an old checkpoint could not be set aside."""
        progress = pending.manifest["progress"] | read_numbers(_part(pending.taken, "numbers"))
        manifest = Manifest(**(pending.manifest | {"progress": progress}), files=files)
        path = checkpoint_writer.commit(self.run, pending.folder, manifest)
        try:
            old = checkpoint_writer.prune(self.run, self.config.checkpoint.keep, path)
        except OSError as error:
            return _unremoved(error)
        self.removal = self.thread.submit(checkpoint_writer.remove, old)
        return None

    def _manifest(self, state: RunState) -> dict[str, Any]:
        return {
            "images_seen": state.counters.images_seen,
            "world_size": self.world.size,
            "zero_stage": self.config.deepspeed.zero_stage,
            "photos": self.photos,
            "progress": count_state(state),
            "versions": self.versions,
            "computed_with": computed_with(self.config, self.world.device.type),
            "commit": self.code_commit,
            "config": self.config.model_dump(mode="json"),
            "parameters": parameter_shapes(state.engines),
        }

    def _write(self, folder: Path, taken: HostTensors) -> dict[str, FileRecord]:
        place = self.world.rank, self.world.size
        contents = {
            checkpoints.shard_file(*place): _part(taken, "shard"),
            checkpoints.rank_file(*place): _part(taken, "rank"),
        }
        return {name: write(folder / name, tensors) for name, tensors in contents.items()}


def _on_main_with_os_errors(world: World, action: Callable[[], Result]) -> Result:
    """As `on_main`, but an OSError there is raised as OSError on all ranks."""

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


def _unremoved(error: OSError) -> str:
    return f"an old checkpoint could not be removed: {_describe(error)}"


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _has_memory_for(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all ranks of this machine can hold a copy and leave the same amount free."""
    needed = sum(tensor.nbytes for tensor in tensors.values()) * ranks_here()
    return 2 * needed < memory_bytes()[0]


def _on_host(tensors: Mapping[str, Tensor]) -> HostTensors:
    """The tensors in host memory; those that are there already are not copied."""
    return HostTensors({key: tensor.detach().to("cpu") for key, tensor in tensors.items()})


def _in_one(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several parts, by PART:NAME."""
    return {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _part(taken: HostTensors, part: str) -> dict[str, Tensor]:
    """The tensors of one part, by name; waits until they have arrived."""
    return {key.removeprefix(f"{part}:"): tensor for key, tensor in taken.wait().items() if key.startswith(f"{part}:")}
