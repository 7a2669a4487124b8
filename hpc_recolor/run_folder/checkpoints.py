"""Checkpoints on disk: names, manifest, verification, and reading of weights. See checkpoint_writer.py for saving.

    RUN/checkpoints/images-000000000512/
      manifest.json                        written after all others
      manifest.json.xxh3                   its hash, as `xxh128sum` prints it; earlier versions wrote none
      shard-00000-of-00002.safetensors     one for each rank: fragments of both networks, see tensor_files.py
      rank-00000-of-00002.safetensors      one for each rank: its random states and buffers
    RUN/checkpoints/.writing-.../          being written: not a checkpoint yet
    RUN/checkpoints/.removing-images-.../  being removed: no longer a checkpoint

State is stored by parameter name, so any number of ranks can read it at any ZeRO stage. Nothing is ever unpickled.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpc_recolor.run_folder.files import FileRecord, file_damage, record_of_bytes
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import Fragments, format_damage
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json
from hpc_recolor.runtime.progress import ProgressCallback

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.json.xxh3"
FORMAT: Literal[2] = 2
MIB = 2**20
NAME = re.compile(r"images-\d{12}", re.ASCII)


def shard_file(rank: int, world_size: int) -> str:
    """The file with a rank's share of the networks' state."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def rank_file(rank: int, world_size: int) -> str:
    """The file with what belongs to one rank: its random states and buffers."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def folder_name(images_seen: int) -> str:
    """The folder name of a committed checkpoint. Names sort by age."""
    return f"images-{images_seen:012d}"


def newest_images(run: RunFolder) -> int:
    """Images trained and saved, by the name of the newest checkpoint; 0 without one."""
    saved = committed(run)
    return int(saved[-1].name.removeprefix("images-")) if saved else 0


class Manifest(BaseModel):
    """What a checkpoint consists of.

    snapshot_epoch: set for a milestone, which is never pruned; photos: fingerprint of the training set; progress:
    scalar training state; computed_with: what the config leaves to the machine (none in those of earlier versions);
    commit: of the code; parameters: full shapes by "network/NAME"; files: two for each rank and
    no others, so that a manifest cannot name files elsewhere or of another kind.
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
    computed_with: dict[str, str] = {}
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
    """The names of a checkpoint's files, except its manifest."""
    return {name(rank, world_size) for rank in range(world_size) for name in (shard_file, rank_file)}


def committed(run: RunFolder) -> list[Path]:
    """The committed checkpoints, intact or damaged, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if NAME.fullmatch(path.name) and path.is_dir())


def require_committed(run: RunFolder) -> list[Path]:
    """The committed checkpoints, oldest first. Raises UserError if there are none."""
    found = committed(run)
    if not found:
        raise UserError(f"run folder {run.path}", "has no checkpoint yet", "train first")
    return found


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises UserError if it cannot be read."""
    manifest = _manifest_or_damage(checkpoint)
    if isinstance(manifest, str):
        raise UserError(f"checkpoint {checkpoint}", f"is damaged: {manifest}", "restore it from a copy or remove it")
    return manifest


def find_damage(checkpoint: Path, files: Sequence[str] | None = None) -> str | None:
    """What is wrong with a checkpoint, or None. Reads its manifest and `files` (names; all of them by default)."""
    manifest = _manifest_or_damage(checkpoint)
    if isinstance(manifest, str):
        return manifest
    if folder_name(manifest.images_seen) != checkpoint.name:
        return f"{MANIFEST} belongs to {folder_name(manifest.images_seen)}"
    if _is_altered(checkpoint):
        return f"{MANIFEST} differs from what was written (XXH3-128)"
    for name in sorted(manifest.files) if files is None else files:
        if name not in manifest.files:
            return f"{MANIFEST} does not list {name}"
        found = file_damage(checkpoint / name, manifest.files[name]) or format_damage(checkpoint / name)
        if found:
            return found
    return None


def newest_intact(run: RunFolder) -> tuple[Path, list[str]]:
    """The newest intact checkpoint, and a line about each newer, damaged one. For a single process.

    Raises UserError if there is none.
    """
    found = require_committed(run)
    skipped: list[str] = []
    for checkpoint in reversed(found):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, skipped
        skipped.append(f"checkpoint {checkpoint} is damaged and skipped: {damage}")
    problem = f"all {len(found)} checkpoints are damaged: {'; '.join(skipped)}"
    raise UserError(f"run folder {run.path}", problem, "restore one from a copy")


def intact_by_name(run: RunFolder, name: str) -> Path:
    """The checkpoint of that name, verified. Raises UserError if there is none, or if it is damaged."""
    found = {path.name: path for path in require_committed(run)}
    if name not in found:
        raise UserError(f"checkpoint={name}", f"{run.path} has no such checkpoint", f"use one of {', '.join(found)}")
    damage = find_damage(found[name])
    if damage:
        raise UserError(f"checkpoint={name}", f"is damaged: {damage}", f"use another one of {', '.join(found)}")
    return found[name]


def verify_all(run: RunFolder, progress: ProgressCallback) -> Iterator[tuple[Path, str | None]]:
    """Each checkpoint, oldest first, and what is wrong with it, or None. Reads all files.

    progress: called with (MiB read, MiB in total). Checkpoints that training prunes meanwhile are left out. Raises
    UserError if there are none.
    """
    found = require_committed(run)
    done_bytes, total_bytes = 0, sum(map(size_bytes, found))
    for path in found:
        damage = find_damage(path)
        done_bytes += size_bytes(path)
        progress(done_bytes // MIB, total_bytes // MIB)
        if path.exists():
            yield path, damage


def size_bytes(checkpoint: Path) -> int:
    """The size of a checkpoint's files on disk; 0 if it was pruned meanwhile."""
    try:
        return sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file())
    except FileNotFoundError:
        return 0


def evaluation_weights(checkpoint: Path, manifest: Manifest) -> "dict[str, Tensor]":
    """The generator's state dict for inference, on CPU: the moving average of its weights if there is one.

    Buffers are averaged over the ranks. Raises UserError if the shards are incomplete.
    """
    return _state_dict(checkpoint, manifest, "generator", weights_kind(fragments(checkpoint, manifest)))


def trained_weights(
    checkpoint: Path, manifest: Manifest, network: Literal["generator", "discriminator"]
) -> "dict[str, Tensor]":
    """A network's state dict after the last step, on CPU: its own weights, and buffers averaged over the ranks.

    Raises UserError if the shards are incomplete.
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
    """The tensors in all ranks' shards."""
    return Fragments(checkpoint / shard_file(rank, manifest.world_size) for rank in range(manifest.world_size))


def weights_kind(saved: Fragments) -> Literal["ema", "weight"]:
    """Which of the generator's weights to use for inference: their moving average, if there is one."""
    return "ema" if saved.names("generator", "ema") else "weight"


def manifest_hash(content: bytes) -> bytes:
    """What MANIFEST_HASH holds: a line that `xxh128sum --check` understands."""
    return f"{record_of_bytes(content).hash}  {MANIFEST}\n".encode()


def _is_altered(checkpoint: Path) -> bool:
    recorded = checkpoint / MANIFEST_HASH
    try:
        return recorded.exists() and recorded.read_bytes() != manifest_hash((checkpoint / MANIFEST).read_bytes())
    except OSError:
        return True


def _manifest_or_damage(checkpoint: Path) -> Manifest | str:
    try:
        content = parse_json((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except ValueError:
        return f"{MANIFEST} is not JSON"
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found != FORMAT:
        return f"{MANIFEST} has format {found}, this version reads {FORMAT}: it was written by another version"
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{MANIFEST} is not a manifest ({' '.join(filter(None, (where, first['msg'])))})"
