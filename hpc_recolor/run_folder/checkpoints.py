"""Checkpoints on disk: begun beside their final name, committed by one rename, checked, pruned, and read.

    RUN/checkpoints/images-000000000512/
      manifest.json                        written last before the rename
      shard-00000-of-00002.safetensors     one for each rank: parts of both networks, see tensor_files.py
      rank-00000-of-00002.safetensors      one for each rank: its random states and buffers
    RUN/checkpoints/.writing-.../          being written: no checkpoint yet
    RUN/checkpoints/.removing-images-.../  being removed: no checkpoint any more

State lies by parameter name, so it is read on any number of ranks and at any ZeRO stage. Nothing is ever unpickled.
"""

import errno
import json
import math
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpc_recolor.run_folder.files import FileRecord, file_damage, fsync, write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import Fragments, format_damage
from hpc_recolor.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT: Literal[2] = 2
WRITING = ".writing-"
REMOVING = ".removing-"
NAME = re.compile(r"images-\d{12}", re.ASCII)


def shard_file(rank: int, world_size: int) -> str:
    """The file of what a rank saves for all."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def rank_file(rank: int, world_size: int) -> str:
    """The file of what is a rank's own."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def folder_name(images_seen: int) -> str:
    """A committed checkpoint's folder. Names sort by age."""
    return f"images-{images_seen:012d}"


class Manifest(BaseModel):
    """What a checkpoint consists of.

    snapshot_epoch: set for a milestone, which is never pruned; photos: fingerprint of the training set; progress:
    numbers of the state; commit: the code's; parameters: whole shapes by "network/NAME"; files: two for each rank, and
    no others, so that none can lie anywhere else or be of another kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[2] = FORMAT
    images_seen: int = Field(ge=0, lt=10**12)
    snapshot_epoch: int | None = None
    world_size: int = Field(ge=1, lt=10**5)
    zero_stage: int = Field(ge=0, le=3)
    photos: str
    progress: dict[str, float | int]
    versions: dict[str, str]
    commit: str | None = None
    config: dict[str, Any]
    parameters: dict[str, list[Annotated[int, Field(ge=0)]]]
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _check_files(self) -> "Manifest":
        for name in sorted(self.files.keys() ^ expected_files(self.world_size)):
            raise ValueError(f"files {'must not name' if name in self.files else 'must name'} {name}")
        return self


def expected_files(world_size: int) -> set[str]:
    """The names of a checkpoint's files, but for its manifest."""
    return {name(rank, world_size) for rank in range(world_size) for name in (shard_file, rank_file)}


def committed(run: RunFolder) -> list[Path]:
    """The committed checkpoints, whole or damaged, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if NAME.fullmatch(path.name) and path.is_dir())


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises UserError if it cannot be read."""
    manifest = _manifest_or_damage(checkpoint)
    if isinstance(manifest, str):
        raise UserError(f"checkpoint {checkpoint} is damaged: {manifest}; bring it back from a copy or remove it")
    return manifest


def find_damage(checkpoint: Path, files: Sequence[str] | None = None) -> str | None:
    """What is wrong with a checkpoint's manifest and files (names; by default all of them), or None. Reads them."""
    manifest = _manifest_or_damage(checkpoint)
    if isinstance(manifest, str):
        return manifest
    if folder_name(manifest.images_seen) != checkpoint.name:
        return f"{MANIFEST} is of {folder_name(manifest.images_seen)}"
    for name in sorted(manifest.files) if files is None else files:
        if name not in manifest.files:
            return f"{MANIFEST} does not name {name}"
        found = file_damage(checkpoint / name, manifest.files[name]) or format_damage(checkpoint / name)
        if found:
            return found
    return None


def newest_whole(run: RunFolder) -> tuple[Path, list[str]]:
    """The newest checkpoint that is whole, and a line on each newer one that is not. For one process alone.

    Raises UserError if there is none.
    """
    found = committed(run)
    skipped: list[str] = []
    for checkpoint in reversed(found):
        wrong = find_damage(checkpoint)
        if wrong is None:
            return checkpoint, skipped
        skipped.append(f"checkpoint {checkpoint} is damaged and skipped: {wrong}")
    if not found:
        raise UserError(f"{run.path} has no checkpoint yet; train first")
    raise UserError(
        f"all {len(found)} checkpoints of {run.path} are damaged: {'; '.join(skipped)}; bring one back from a copy"
    )


def evaluation_weights(checkpoint: Path, manifest: Manifest) -> "dict[str, Tensor]":
    """The generator for use, as a state dict on CPU: averaged weights if the run kept them, and averaged buffers.

    Raises UserError if the shards do not hold it whole.
    """
    return _state_dict(checkpoint, manifest, "generator", weights_kind(fragments(checkpoint, manifest)))


def trained_weights(
    checkpoint: Path, manifest: Manifest, network: Literal["generator", "discriminator"]
) -> "dict[str, Tensor]":
    """A network as the last step left it, as a state dict on CPU: its own weights, and buffers averaged over ranks.

    Raises UserError if the shards do not hold it whole.
    """
    return _state_dict(checkpoint, manifest, network, "weight")


def _state_dict(checkpoint: Path, manifest: Manifest, network: str, kind: str) -> "dict[str, Tensor]":
    saved, weights = fragments(checkpoint, manifest), {}
    for key, shape in manifest.parameters.items():
        owner, _, name = key.partition("/")
        if owner == network:
            weights[name] = saved.read(network, kind, name, math.prod(shape)).view(shape)
    return weights | saved.averaged(network)


def fragments(checkpoint: Path, manifest: Manifest) -> Fragments:
    """All tensors that the ranks saved together."""
    return Fragments(checkpoint / shard_file(rank, manifest.world_size) for rank in range(manifest.world_size))


def weights_kind(saved: Fragments) -> Literal["ema", "weight"]:
    """Which of the generator's weights are for use: their moving average, where there is one."""
    return "ema" if saved.names("generator", "ema") else "weight"


def begin(run: RunFolder) -> Path:
    """Clear away what was being written or removed when a process ended, and give an empty folder to write into."""
    if not run.checkpoints.is_dir():
        run.checkpoints.mkdir(parents=True)
        fsync(run.path)
    for path in run.checkpoints.iterdir():
        if path.name.startswith((WRITING, REMOVING)):
            _delete(path)
    # A name of its own: another host may take the last one for what it was renamed to, as network file systems
    # remember names for a while, and would write into a committed checkpoint.
    beside = run.checkpoints / f"{WRITING}{uuid.uuid4().hex}"
    beside.mkdir()
    return beside


def commit(run: RunFolder, beside: Path, manifest: Manifest) -> Path:
    """Make the folder that all ranks have written into the checkpoint of its manifest. Returns its final path.

    A damaged checkpoint of that name is replaced; a whole one stays, since it holds the same state. Raises OSError,
    with the folder written into removed and the whole checkpoints as they were, if it fails before the rename.
    """
    final = run.checkpoints / folder_name(manifest.images_seen)
    try:
        _check_sizes(beside, manifest)
        write_atomically(beside / MANIFEST, manifest.model_dump_json(indent=1).encode())
        fsync(beside)
        if final.exists() and find_damage(final) is None:
            _delete(beside)
            return final
        replaced = _set_aside(final) if final.exists() else None
        beside.rename(final)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync(run.checkpoints)
    if replaced:
        _delete(replaced)
    return final


def prune(run: RunFolder, keep: int, newest: Path) -> None:
    """Remove the committed checkpoints but the newest `keep` and the milestones.

    newest: the one committed last. Any that are newer were damaged when the run went on without them: they are left
    for the user to look at, and do not count.
    """
    passed = [path for path in committed(run) if path.name <= newest.name]
    for path in passed[:-keep]:
        if not _may_be_milestone(path):
            _delete(_set_aside(path))


def _check_sizes(beside: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        if (beside / name).stat().st_size != record.size_bytes:
            raise OSError(errno.EIO, "is not as long as what was written", str(beside / name))


def _manifest_or_damage(checkpoint: Path) -> Manifest | str:
    try:
        text = (checkpoint / MANIFEST).read_bytes()
        content = json.loads(text)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return f"{MANIFEST} is no JSON"
    written_as = content.get("format") if isinstance(content, dict) else None
    if isinstance(written_as, int) and written_as != FORMAT:
        return f"{MANIFEST} has format {written_as}, this version reads {FORMAT}: it was written by another version"
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{MANIFEST} is no manifest ({' '.join(filter(None, (where, first['msg'])))})"


def _may_be_milestone(checkpoint: Path) -> bool:
    """What cannot be read today, or is another version's, is given the benefit of the doubt; garbage is not."""
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    except OSError:
        return True
    return isinstance(content, dict) and content.get("snapshot_epoch") is not None


def _set_aside(checkpoint: Path) -> Path:
    """Rename a committed checkpoint, for good, so that it is none any more: a kill cannot leave half of one."""
    aside = checkpoint.with_name(REMOVING + checkpoint.name)
    checkpoint.rename(aside)
    fsync(checkpoint.parent)
    return aside


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
