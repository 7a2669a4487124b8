"""Members of zip and tar archives, ready to be read. Nothing is extracted, and an archive may contain anything."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

from hpc_recolor.data.member_names import tar_label, zip_label

MAX_MEMBERS = 5_000_000  # of an archive; each takes about a kilobyte of memory
MAX_UNPACKED_BYTES = 2**38
MAX_HEADER_BYTES = 2**20  # long names and the like
# What the standard library's readers raise on damaged archives.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)

# Reads at most that many bytes from the beginning. Raises OSError. Thread-safe.
ReadBeginning = Callable[[int], bytes]


@dataclass(frozen=True)
class Member:
    """A file in an archive. name: a label, see `member_names`. problem: why it must not be opened."""

    name: str
    size_bytes: int
    read: ReadBeginning
    problem: str | None = None


def list_members(archive: Path, unpack_in: Path) -> Iterator[Member]:
    """Every file in a zip or tar archive that is not hidden. The kind of archive is decided by content, not by suffix.

    Problems: links, devices, sparse or encrypted files.
    unpack_in: existing folder; a compressed tar archive is unpacked there into a nameless file. Raises ARCHIVE_ERRORS
    if the archive is damaged, also during iteration.
    """
    file = _Archive(archive)
    beginning = file.read(6)
    for magic, unpacks in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if beginning.startswith(magic):
            with unpacks(archive) as packed:
                file = _unpack(packed, unpack_in)
            break
    is_zip = beginning.startswith((b"PK\3\4", b"PK\5\6"))  # the second if it is empty
    return _in_zip(zipfile.ZipFile(archive)) if is_zip else _in_tar(file)


def describe_error(error: Exception, place: Path | None = None) -> str:
    """The message of an error in one line. place: for system errors that name no file."""
    if isinstance(error, OSError) and error.errno and place:
        return f"{error.strerror}: {error.filename or place}"
    return " ".join(str(error).split()) or type(error).__name__


class _Archive(io.FileIO):
    """An archive, closed with its last reader, so that it stays readable if its file is removed."""

    def __del__(self) -> None:
        self.close()

    def read(self, size: int | None = -1) -> bytes:
        """For tarfile: one header, at most MAX_HEADER_BYTES, whatever length the archive claims."""
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("damaged header")
        return super().read(size) or b""

    def read_member(self, offset: int, size_bytes: int, limit: int) -> bytes:
        """At most `limit` bytes of a member. Thread-safe. Raises OSError if the archive is truncated."""
        wanted = min(size_bytes, limit)
        content = os.pread(self.fileno(), wanted, offset)
        if len(content) < wanted:
            raise OSError("truncated: the archive ends before it")
        return content


def _checked(name: str, size_bytes: int, read: ReadBeginning, problem: str | None) -> Iterator[Member]:
    """The member, with a problem if its kind is unsafe; nothing if it is hidden. name: its label."""
    if any(part.startswith(".") and part != "." for part in name.split("/")):
        return
    unsafe = f"unsafe archive member: {problem}" if problem else None
    yield Member(name=name, size_bytes=size_bytes, read=read, problem=unsafe)


def _unpack(packed: io.BufferedIOBase, unpack_in: Path) -> _Archive:
    """A compressed tar archive as a nameless file, where members can be read in any order."""
    chunk = packed.read(2**20)
    tarfile.TarInfo.frombuf(chunk[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")  # raises if it is not a tar
    with tempfile.TemporaryFile(dir=unpack_in) as unpacked:
        while chunk:
            unpacked.write(chunk)
            if unpacked.tell() > MAX_UNPACKED_BYTES:
                raise tarfile.ReadError(f"more than {MAX_UNPACKED_BYTES} bytes unpacked")
            chunk = packed.read(2**20)
        unpacked.flush()
        return _Archive(os.dup(unpacked.fileno()))


def _in_tar(file: _Archive) -> Iterator[Member]:
    file.seek(0)
    tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
    offset, count = -1, 0
    while member := tar.next():
        count += 1
        # A negative size would lead back to an earlier header, in an endless loop.
        if member.size < 0 or member.offset <= offset or count > MAX_MEMBERS:
            raise tarfile.ReadError(f"damaged header, or more than {MAX_MEMBERS} members")
        offset = member.offset
        if not member.isdir():
            problem = None if member.isreg() and not member.issparse() else "a link, device or sparse file"
            read = partial(file.read_member, member.offset_data, member.size)
            yield from _checked(tar_label(member.name), member.size, read, problem)
    # tarfile takes a damaged header, and the end of a truncated file, for the end of the archive.
    file.seek(tar.offset)
    end = file.read(MAX_HEADER_BYTES)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("truncated, or damaged in the middle")


def _in_zip(archive: zipfile.ZipFile) -> Iterator[Member]:
    if len(archive.infolist()) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"more than {MAX_MEMBERS} members")
    lock = Lock()
    for info in archive.infolist():
        problem = None
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "a link or device"
        elif info.flag_bits & 1:
            problem = "encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "neither stored nor deflated"  # readers of other methods unpack without a limit
        if not info.is_dir():
            read = partial(_read_zip, archive, lock, info)
            yield from _checked(zip_label(info), info.file_size, read, problem)


def _read_zip(archive: zipfile.ZipFile, lock: Lock, info: zipfile.ZipInfo, limit: int) -> bytes:
    try:
        with lock:  # ZipFile counts its open readers without a lock
            member = archive.open(info)
        try:
            return member.read(min(limit, info.file_size))
        finally:
            with lock:
                member.close()
    except ARCHIVE_ERRORS as error:
        raise OSError(f"damaged in the archive: {describe_error(error)}") from None
