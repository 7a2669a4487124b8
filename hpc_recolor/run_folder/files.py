"""Atomic and durable file operations, and the file records that manifests hold."""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import BaseModel, model_serializer, model_validator

# Of a file's name in a temporary one, which may be no longer than file systems allow: 255 bytes, 4 a character.
LONGEST_NAME = 50
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.writing", re.DOTALL)
# A temporary file that has not changed for so long has lost its writer [s].
LEFTOVER_S = 3600
ALGORITHM_NAMES = {"xxh3_128": "XXH3-128", "sha256": "SHA-256"}


class FileRecord(BaseModel):
    """A file of a checkpoint or a data set. Its hash finds damage; it is no defense against forgery.

    xxh3_128: XXH3 with 128 bits (xxhash.com), hex; where it is missing, as in files of earlier versions, sha256.
    """

    size_bytes: int
    xxh3_128: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _check_hash(self) -> "FileRecord":
        if (self.xxh3_128 is None) == (self.sha256 is None):
            raise ValueError("needs xxh3_128, or sha256")
        return self

    @model_serializer
    def _without_none(self) -> dict[str, int | str]:
        return {"size_bytes": self.size_bytes} | {self.algorithm: self.hash}

    @property
    def algorithm(self) -> Literal["xxh3_128", "sha256"]:
        """Of `hash`."""
        return "xxh3_128" if self.xxh3_128 else "sha256"

    @property
    def hash(self) -> str:
        """Hex."""
        return self.xxh3_128 or self.sha256 or ""


def record_of(file: Path, algorithm: Literal["xxh3_128", "sha256"] = "xxh3_128") -> FileRecord:
    """Size and hash of a file, as manifests hold them. Reads all of it. Raises OSError."""
    with file.open("rb") as stream:
        new = xxhash.xxh3_128 if algorithm == "xxh3_128" else hashlib.sha256
        digest = hashlib.file_digest(stream, new).hexdigest()
    return FileRecord.model_validate({"size_bytes": file.stat().st_size, algorithm: digest})


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hex: for what is exported, or named in results. Raises OSError."""
    return record_of(file, "sha256").hash


def record_of_bytes(content: bytes) -> FileRecord:
    """Size and hash of what a file will hold."""
    return FileRecord(size_bytes=len(content), xxh3_128=xxhash.xxh3_128_hexdigest(content))


def file_damage(file: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, or None. Reads all of it, unless its size is wrong already."""
    try:
        size_bytes = file.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"{file.name} has {size_bytes} bytes, expected {expected.size_bytes}"
        found = record_of(file, expected.algorithm)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    if found == expected:
        return None
    return f"{file.name} differs from what was written ({ALGORITHM_NAMES[expected.algorithm]})"


def temporary_name(file: Path) -> Path:
    """A name in the folder of a file for what `rename_over` is to rename to it, which no other writer has, on any host.

    What a writer leaves that is killed is hidden, so that it is taken for no file of a run and for no photograph.
    """
    return file.with_name(f".{file.name[:LONGEST_NAME]}.{uuid.uuid4().hex[:8]}.writing")


def rename_over(written: Path, file: Path) -> None:
    """Replace a file by what was written under a `temporary_name`. Then removes what writers of it left that were
    killed, as far as it is an hour old. Raises OSError."""
    written.replace(file)
    for left in _leftovers(file.parent).pop(file.name[:LONGEST_NAME], ()):
        with suppress(OSError):  # it only takes space
            left.unlink()


@lru_cache(maxsize=100)
def _leftovers(folder: Path) -> dict[str, list[Path]]:
    """Old temporary files in a folder, by the beginning of their file's name. A process lists each folder once, as it
    may write a hundred thousand files there."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for file in folder.iterdir():
            match = TEMPORARY.fullmatch(file.name)
            if match and file.lstat().st_mtime < time.time() - LEFTOVER_S:
                found.setdefault(match[1], []).append(file)
    return found


def write_atomically(file: Path, content: bytes | memoryview, durable: bool = True) -> None:
    """Replace a file so that readers see the old content or the new, even after a kill, and whoever else writes it.

    durable: whether that holds after a power cut, too. Raises OSError.
    """
    written = temporary_name(file)
    try:
        with written.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        rename_over(written, file)
    except BaseException as error:
        written.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)  # a failed write does not name its file
        raise


def to_json(model: BaseModel, indent: int | None = None) -> bytes:
    """A model as JSON. pydantic's own writer refuses paths and names that are not UTF-8, which JSON can escape."""
    return json.dumps(model.model_dump(mode="json"), indent=indent).encode()


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
