"""Folders, zip and tar archives -> the photographs in them, named and ready to be read. Nothing is extracted."""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock

from hpc_recolor.runtime.errors import UserError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
# How they begin: JPEG, PNG, WebP, TIFF and BigTIFF, and BMP with the length of its second header.
PHOTO_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.S
)
MAX_MEMBER_BYTES = 2**29  # of a photograph, as a file
MAX_MEMBERS = 5_000_000  # of an archive; each takes about a kilobyte of memory
MAX_UNPACKED_BYTES = 2**38
MAX_HEADER_BYTES = 2**20  # long names and the like
# What the standard library's readers raise over damaged archives.
DAMAGED = (
    *(OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)

Reader = Callable[[int], bytes]  # the first so many bytes, or all if there are fewer; raises OSError; thread-safe


@dataclass(frozen=True)
class Entry:
    """A photograph, or what should be one.

    name: unique, parts joined by "/"; bytes that are no UTF-8 as os.fsdecode gives them. It is a label: archives may
        say anything, so no path must be made of it. In a folder: the folder's own name, then the path inside.
    read: returns the whole content; raises OSError if it has vanished, is damaged or larger than MAX_MEMBER_BYTES.
        For all threads of this process.
    problem: why it must be left out unread.
    """

    name: str
    size_bytes: int
    read: Callable[[], bytes]
    problem: str | None = None


@dataclass(frozen=True)
class Listing:
    """Photographs, sorted by the bytes of their names, and how many files were none."""

    entries: list[Entry]
    other_files: int


def list_entries(sources: Sequence[Path], unpack_in: Path) -> Listing:
    """Every photograph in folders (nested, links followed) and archives, told by content, whatever their suffix.

    A file with a photograph's suffix is one; another only if it begins like one. Hidden files and what `walk` skips are
    left aside, with the folder unpack_in. Archive members that could do harm (unsafe paths, links, devices, ...) are
    never opened; those with a photograph's suffix have a problem. Names that were taken get "~2" behind the first part.
    unpack_in: existing folder; compressed tar archives are unpacked there into nameless files, which are gone with the
        listing, or with the process however it ends.
    Raises UserError if a source is missing, cannot be read or is damaged, or if none has any photograph.
    """
    entries: list[Entry] = []
    taken: dict[str, int] = {}
    other_files = 0
    for source in sources:
        try:
            for entry in _entries_of(source, unpack_in):
                if entry is None:
                    other_files += 1
                else:
                    entries.append(replace(entry, name=_unique(entry.name, taken)))
        except FileNotFoundError:
            raise UserError(f"SOURCE={source}: no such file or folder; name a folder, a .zip or a .tar") from None
        except DAMAGED as error:
            raise UserError(
                f"SOURCE={source}: cannot be read as a folder, zip or tar ({_reason(error, unpack_in)}); mend that, "
                "fetch it again, or unpack it yourself and name the folder"
            ) from None
    if not entries:
        names = ", ".join(map(str, sources))
        raise UserError(f"SOURCE={names}: no photographs in it; expected {', '.join(sorted(PHOTO_SUFFIXES))} files")
    return Listing(sorted(entries, key=lambda entry: os.fsencode(entry.name)), other_files)


def walk(
    folder: Path, without: Path | None = None, failed: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, links followed, each once, with the names of what is no folder in it.

    Skipped are hidden files and folders, run folders and data sets (what we write is no photograph), and `without`.
    failed: told of folders that cannot be listed.
    """
    visited = {os.path.realpath(without)} - {os.path.realpath(folder)} if without else set()
    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        here = os.path.realpath(place)
        is_run = "config.yaml" in files and "samples" in folders
        if here in visited or ((is_run or is_data_set(files)) and place != str(folder)):
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, [name for name in files if not name.startswith(".")]


def is_data_set(files: Sequence[str]) -> bool:
    """Whether these are the files of a data set that `prepare` wrote or is writing."""
    return "progress.jsonl" in files or {"manifest.json", "train-index.npy"} <= set(files)


def is_photo_name(name: str) -> bool:
    """Whether a name ends like a photograph's."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES


def _unique(name: str, taken: dict[str, int]) -> str:
    first, slash, rest = name.partition("/")
    unique, number = name, taken.get(name, 1)
    while unique in taken:
        number += 1
        unique = f"{first}~{number}{slash}{rest}"
    taken[name] = number
    taken.setdefault(unique, 1)
    return unique


def _reason(error: Exception, place: Path | None = None) -> str:
    if isinstance(error, OSError) and error.errno and place:
        return f"{error.strerror}: {error.filename or place}"
    return " ".join(str(error).split()) or type(error).__name__


def _entries_of(source: Path, unpack_in: Path) -> Iterator[Entry | None]:
    """The photographs of one source, and None for every other file."""
    mode = source.stat().st_mode
    if stat.S_ISDIR(mode):
        os.scandir(source).close()
        return _in_folder(source, unpack_in)
    if not stat.S_ISREG(mode):
        raise OSError("it is a pipe, socket or device")
    file = _Archive(source)
    beginning = file.read(6)
    for magic, unpacks in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if beginning.startswith(magic):
            with unpacks(source) as packed:
                return _in_tar(_unpack(packed, unpack_in))
    is_zip = beginning.startswith((b"PK\3\4", b"PK\5\6"))  # the second if it is empty
    return _in_zip(zipfile.ZipFile(source)) if is_zip else _in_tar(file)


def _entry(name: str, size_bytes: int, read: Reader, problem: str | None) -> Entry | None:
    """The entry for a file, or None if it is no photograph. With a problem it is not opened."""
    if not problem and size_bytes > MAX_MEMBER_BYTES:
        problem = f"too large: more than {MAX_MEMBER_BYTES} bytes"
    if not is_photo_name(name):
        try:
            if problem or not PHOTO_BEGINNING.match(read(18)):
                return None
        except OSError:
            return None
    return Entry(name, size_bytes, partial(_whole, read), problem)


def _whole(read: Reader) -> bytes:
    content = read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise OSError(f"more than {MAX_MEMBER_BYTES} bytes")
    return content


def _in_folder(folder: Path, without: Path) -> Iterator[Entry | None]:
    root = folder.resolve().name

    def named(place: str) -> str:
        return os.path.normpath(os.path.join(root, os.path.relpath(place, folder)))

    failed: list[OSError] = []
    for place, files in walk(folder, without, failed.append):
        here = named(place)
        for file in files:
            path, size_bytes = os.path.join(place, file), 0
            try:
                status = os.stat(path)
                size_bytes = status.st_size
                problem = None if stat.S_ISREG(status.st_mode) else "no regular file: a pipe, socket or device"
            except OSError as error:
                problem = f"unreadable: {error.strerror}"
            yield _entry(f"{here}/{file}", size_bytes, partial(read_file, path), problem)
    for failure in failed:
        read = partial(_whole, partial(read_file, failure.filename))
        yield Entry(named(failure.filename), 0, read, f"folder cannot be listed: {failure.strerror}")


def read_file(path: str | Path, limit: int = MAX_MEMBER_BYTES) -> bytes:
    """At most `limit` bytes of a regular file. Raises OSError, also if it is none."""
    # Without waiting: what was a file may be a pipe by now.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        return file.read(min(limit, status.st_size))


class _Archive(io.FileIO):
    """An archive, closed with its last reader, so that it stays readable if its name goes."""

    def __del__(self) -> None:
        self.close()

    def read(self, size: int | None = -1) -> bytes:
        """For tarfile: one header, however long the archive says that it is."""
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("damaged header")
        return super().read(size) or b""

    def read_member(self, offset: int, size_bytes: int, limit: int) -> bytes:
        wanted = min(size_bytes, limit)
        content = os.pread(self.fileno(), wanted, offset)
        if len(content) < wanted:
            raise OSError("truncated: the archive ends before it")
        return content


def _member(name: str, size_bytes: int, read: Reader, problem: str | None) -> Iterator[Entry | None]:
    """One member of an archive, or nothing if it is hidden."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or re.match("[A-Za-z]:", name):
        problem = "its path is absolute, leads outside or is one of Windows"
    elif any(part.startswith(".") and part != "." for part in parts):
        return
    yield _entry(name, size_bytes, read, problem and f"unsafe archive member: {problem}")


def _unpack(packed: io.BufferedIOBase, unpack_in: Path) -> _Archive:
    """A compressed tar archive as a nameless file, where members can be read in any order."""
    chunk = packed.read(2**20)
    tarfile.TarInfo.frombuf(chunk[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")  # raises if it is none
    with tempfile.TemporaryFile(dir=unpack_in) as unpacked:
        while chunk:
            unpacked.write(chunk)
            if unpacked.tell() > MAX_UNPACKED_BYTES:
                raise tarfile.ReadError(f"more than {MAX_UNPACKED_BYTES} bytes unpacked")
            chunk = packed.read(2**20)
        unpacked.flush()
        return _Archive(os.dup(unpacked.fileno()))


def _in_tar(file: _Archive) -> Iterator[Entry | None]:
    file.seek(0)
    tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
    offset, count = -1, 0
    while member := tar.next():
        count += 1
        # A negative size would lead back, and around for ever.
        if member.size < 0 or member.offset <= offset or count > MAX_MEMBERS:
            raise tarfile.ReadError(f"damaged header, or more than {MAX_MEMBERS} members")
        offset = member.offset
        if not member.isdir():
            kind = None if member.isreg() and not member.issparse() else "a link, device or sparse file"
            yield from _member(
                member.name, member.size, partial(file.read_member, member.offset_data, member.size), kind
            )
    # tarfile takes a damaged header, and the end of a truncated file, for the end of the archive.
    file.seek(tar.offset)
    end = file.read(MAX_HEADER_BYTES)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("truncated, or damaged in the middle")


def _in_zip(archive: zipfile.ZipFile) -> Iterator[Entry | None]:
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
            problem = "neither stored nor deflated"  # the other methods' readers unpack without limit
        if not info.is_dir():
            yield from _member(info.filename, info.file_size, partial(_read_zip, archive, lock, info), problem)


def _read_zip(archive: zipfile.ZipFile, lock: Lock, info: zipfile.ZipInfo, limit: int) -> bytes:
    try:
        with lock:  # ZipFile counts its readers without one
            member = archive.open(info)
        try:
            return member.read(min(limit, info.file_size))
        finally:
            with lock:
                member.close()
    except DAMAGED as error:
        raise OSError(f"damaged in the archive: {_reason(error)}") from None
