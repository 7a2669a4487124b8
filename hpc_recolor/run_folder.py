"""The run folder: what lies where, who may go on in it, and which checkpoint is the newest whole one."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from hpc_recolor.config import Config, changed_keys, load_config, to_yaml
from hpc_recolor.errors import UserError

MANIFEST = "manifest.json"
GENERATOR_WEIGHTS = "generator.safetensors"


_REMOVE_IT = "is not what was written; remove this checkpoint's folder to go on from the one before"


class FileRecord(BaseModel):
    """A file of a checkpoint or a data set."""

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint consists of. photos: fingerprint of the training set; files: by name."""

    format: Literal[1] = 1
    images_seen: int
    world_size: int
    photos: str
    versions: dict[str, str]
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class RunFolder:
    """The places inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def losses(self) -> Path:
        return self.path / "losses.png"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def find(config: Config) -> RunFolder:
    """The run folder of a config, not yet there or holding the same run. Writes nothing.

    Raises UserError if the folder holds another run, or files that are no run.
    """
    run = RunFolder(config.run.folder / config.run.name)
    if run.config.is_file():
        changes = changed_keys(load_config(run.config, {}), config)
        if changes:
            raise UserError(
                f"run.name={config.run.name}: {run.path} holds another run ({'; '.join(changes)}); "
                "give the same values to go on with it, or another run.name, or remove the folder"
            )
    elif run.path.exists() and (
        not run.path.is_dir() or any(not path.name.startswith(".") for path in run.path.iterdir())
    ):
        raise UserError(f"run.name={config.run.name}: {run.path} exists and is no run folder; give another run.name")
    return run


def claim(run: RunFolder, config: Config) -> None:
    """Create the run folder if need be, and write the config into it. Raises UserError if it cannot be written."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.config, to_yaml(config).encode())
    except OSError as error:
        raise UserError(f"run.folder={config.run.folder}: cannot write {run.path} ({error.strerror})") from None


def open_run(folder: Path) -> tuple[RunFolder, Config]:
    """An existing run folder and its config. Raises UserError if it is none."""
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml; name a folder that training wrote")
    return run, load_config(run.config, {})


def checkpoints(run: RunFolder) -> list[Path]:
    """The committed checkpoints, oldest first. Only what has a manifest is a checkpoint."""
    return sorted(manifest.parent for manifest in run.checkpoints.glob(f"images-*/{MANIFEST}"))


def newest_checkpoint(run: RunFolder) -> Path:
    """The newest checkpoint, every file of it verified. Raises UserError if there is none or it is damaged."""
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run.path} has no checkpoint yet; train first")
    verify(found[-1])
    return found[-1]


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises UserError if it cannot be read."""
    try:
        return Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"checkpoint {checkpoint} is damaged: {MANIFEST} {_REMOVE_IT}") from None


def verify(checkpoint: Path) -> None:
    """Raise UserError unless every file of the checkpoint has the size and SHA-256 of its manifest."""
    for name, expected in read_manifest(checkpoint).files.items():
        file = checkpoint / name
        if not file.is_file() or describe(file) != expected:
            raise UserError(f"checkpoint {checkpoint} is damaged: {name} {_REMOVE_IT}")


def describe(file: Path) -> FileRecord:
    """Size and SHA-256 of a file, as manifests hold them."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(size_bytes=file.stat().st_size, sha256=digest)


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new, never a part."""
    beside = file.with_name(f".{file.name}.writing")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)  # a failed write does not name its file
        raise


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
