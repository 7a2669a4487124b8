"""Atomic and durable file operations, and the file records that manifests hold."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel


class FileRecord(BaseModel):
    """A file of a checkpoint or a data set."""

    size_bytes: int
    sha256: str


def record_of(file: Path) -> FileRecord:
    """Size and SHA-256 of a file, as manifests hold them. Reads all of it. Raises OSError."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(size_bytes=file.stat().st_size, sha256=digest)


def file_damage(file: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, or None. Reads all of it, unless its size is wrong already."""
    try:
        size_bytes = file.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"{file.name} has {size_bytes} bytes, expected {expected.size_bytes}"
        found = record_of(file)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None if found == expected else f"{file.name} differs from what was written (SHA-256)"


def write_atomically(file: Path, content: bytes) -> None:
    """Replace a file so that readers see the old content or the new, even after a kill. Raises OSError."""
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
    """Afterwards, remove `folder` and its parents as far as the body created them and left them empty."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in created:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def fsync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
