"""The run folder: what lies where, and who may go on in it. Files that are whole or not there."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from hpc_recolor.config import Config, changed_keys, load_config, to_yaml
from hpc_recolor.errors import UserError

GENERATOR_WEIGHTS = "generator.safetensors"


class FileRecord(BaseModel):
    """A file of a checkpoint or a data set."""

    size_bytes: int
    sha256: str


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


def make_folder(run: RunFolder) -> None:
    """Create the run folder if need be. Raises UserError if that cannot be done."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None


def claim(run: RunFolder, config: Config) -> None:
    """Make the run folder this config's. Raises UserError if it cannot be written."""
    make_folder(run)
    try:
        write_atomically(run.config, to_yaml(config).encode())
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: RunFolder, error: OSError) -> UserError:
    return UserError(f"run.folder={run.path.parent}: cannot write {run.path} ({error.strerror})")


def open_run(folder: Path) -> tuple[RunFolder, Config]:
    """An existing run folder and its config. Raises UserError if it is none."""
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml; name a folder that training wrote")
    return run, load_config(run.config, {})


def describe(file: Path) -> FileRecord:
    """Size and SHA-256 of a file, as manifests hold them."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(size_bytes=file.stat().st_size, sha256=digest)


def file_damage(file: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, or None. Reads all of it, unless its size tells already."""
    try:
        size_bytes = file.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"{file.name} has {size_bytes} bytes, expected {expected.size_bytes}"
        found = describe(file)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None if found == expected else f"{file.name} is not what was written (SHA-256 differs)"


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


@contextmanager
def without_empty_folders(folder: Path) -> Iterator[None]:
    """Folders that are made for `folder` meanwhile do not stay if nothing comes into them."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in created:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
