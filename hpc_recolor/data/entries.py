"""Folders and archives -> the photographs in them, named and ready to be read. Nothing is extracted.

Problems of photographs are stored in manifests as the reasons why they were left out, so their texts are kept.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hpc_recolor.data.archives import ARCHIVE_ERRORS, ReadBeginning, describe_error, list_members
from hpc_recolor.runtime.errors import UserError

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif", ".hif"}
)
# Images that people keep among photographs, and that cannot be read: named where they are left out.
OTHER_IMAGE_SUFFIXES = frozenset(
    {".gif", ".jxl", ".jp2", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"}
)
# The brands of HEIF, as ISO/IEC 23008-12 names them; its two neutral ones may also be AVIF.
HEIF_BEGINNING = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.S)
# The first bytes: JPEG, PNG, WebP, AVIF, HEIF, TIFF and BigTIFF, and BMP with the length of its second header.
PHOTO_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|....ftypavi[fs]|II[*+]\0|MM\0[*+]"
    rb"|%b"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0" % HEIF_BEGINNING.pattern,
    re.S,
)
# GIF, JPEG 2000, JPEG XL in its container, and Photoshop.
OTHER_IMAGE_BEGINNING = re.compile(rb"GIF8[79]a|\0\0\0\x0c(jP  |JXL )\r\n|8BPS\0")
BEGINNING_BYTES = 18
MAX_PHOTO_BYTES = 2**29  # as a file

FileKind = Literal["photograph", "other image", "other file"]


@dataclass(frozen=True)
class Entry:
    """A photograph, or what should be one.

    name: unique, parts joined by "/"; bytes that are not UTF-8 as os.fsdecode returns them. Only a label: archives may
        contain any name, so never make a path of it. In a folder: the folder's own name, then the path inside.
    read: returns the whole content; raises OSError if it has vanished, is damaged or larger than MAX_PHOTO_BYTES.
        Thread-safe.
    file: that holds its content: its own, or its archive's.
    problem: why it must be left out without reading it.
    """

    name: str
    size_bytes: int
    read: Callable[[], bytes]
    file: Path
    problem: str | None = None


@dataclass(frozen=True)
class Listing:
    """Photographs, sorted by the bytes of their names, and the number of other files."""

    entries: list[Entry]
    other_files: int


def list_entries(sources: Sequence[Path], unpack_in: Path) -> Listing:
    """Every photograph in folders (nested, links followed) and archives, recognized by content, whatever their suffix.

    A file with a photograph's suffix is one; another only if it begins like one; an image of another kind has a
    problem. Hidden files and what `walk` skips are left out, and so is the folder unpack_in. Unsafe archive members
    (links, devices, ...) are never opened; those with a photograph's suffix have a problem.
    Names that exist already get "~2" after the first part.
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
            raise UserError(f"SOURCE={source}", "no such file or folder", "name a folder, a .zip or a .tar") from None
        except ARCHIVE_ERRORS as error:
            raise UserError(
                f"SOURCE={source}",
                f"cannot be read as a folder, zip or tar ({describe_error(error, unpack_in)})",
                "repair it, fetch it again, or unpack it yourself and name the folder",
            ) from None
    if not entries:
        raise UserError(
            f"SOURCE={', '.join(map(str, sources))}",
            "no photographs in it",
            f"name a folder or archive with {', '.join(sorted(PHOTO_SUFFIXES))} files",
        )
    return Listing(entries=sorted(entries, key=lambda entry: os.fsencode(entry.name)), other_files=other_files)


def walk(
    folder: Path, without: Path | None = None, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, links followed, each once: (path, names of the files in it).

    Skipped are hidden files and folders, run folders and data sets (which hold no photographs), and `without`.
    on_error: called for each folder that cannot be listed.
    """
    visited = {os.path.realpath(without)} - {os.path.realpath(folder)} if without else set()
    for place, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
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
    """Whether a name has a photograph's suffix."""
    return _suffix(name) in PHOTO_SUFFIXES


def kind_of(path: Path) -> FileKind:
    """What a file is by its suffix, or by its first bytes."""
    return _kind_of(path.name, partial(read_file, path))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kind_of(name: str, read: ReadBeginning) -> FileKind:
    if is_photo_name(name):
        return "photograph"
    try:
        beginning = read(BEGINNING_BYTES)
    except OSError:
        beginning = b""
    if PHOTO_BEGINNING.match(beginning):
        return "photograph"
    is_other_image = _suffix(name) in OTHER_IMAGE_SUFFIXES or OTHER_IMAGE_BEGINNING.match(beginning)
    return "other image" if is_other_image else "other file"


def read_file(path: str | Path, limit: int = MAX_PHOTO_BYTES) -> bytes:
    """At most `limit` bytes of a regular file. Raises OSError, also if it is not a regular file."""
    # Without blocking: the file may have become a pipe.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        return file.read(min(limit, status.st_size))


def _unique(name: str, taken: dict[str, int]) -> str:
    first, slash, rest = name.partition("/")
    unique, number = name, taken.get(name, 1)
    while unique in taken:
        number += 1
        unique = f"{first}~{number}{slash}{rest}"
    taken[name] = number
    taken.setdefault(unique, 1)
    return unique


def _entries_of(source: Path, unpack_in: Path) -> Iterator[Entry | None]:
    """The photographs of one source, and None for every other file."""
    mode = source.stat().st_mode
    if stat.S_ISDIR(mode):
        os.scandir(source).close()
        return _in_folder(source, unpack_in)
    if not stat.S_ISREG(mode):
        raise OSError("it is a pipe, socket or device")
    return (
        _entry(member.name, member.size_bytes, member.read, member.problem, source)
        for member in list_members(source, unpack_in)
    )


def _entry(name: str, size_bytes: int, read: ReadBeginning, problem: str | None, file: Path) -> Entry | None:
    """The entry for a file, or None if it is not a photograph. With a problem it is not opened."""
    if not problem and size_bytes > MAX_PHOTO_BYTES:
        problem = f"too large: more than {MAX_PHOTO_BYTES} bytes"
    kind = _kind_of(name, (lambda limit: b"") if problem else read)
    if kind == "other file":
        return None
    if kind == "other image":
        problem = problem or "foreign: an image of a kind that cannot be read"
    return Entry(name=name, size_bytes=size_bytes, read=partial(_read_whole, read), problem=problem, file=file)


def _read_whole(read: ReadBeginning) -> bytes:
    content = read(MAX_PHOTO_BYTES + 1)
    if len(content) > MAX_PHOTO_BYTES:
        raise OSError(f"more than {MAX_PHOTO_BYTES} bytes")
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
            yield _entry(f"{here}/{file}", size_bytes, partial(read_file, path), problem, Path(path))
    for failure in failed:
        yield Entry(
            name=named(failure.filename),
            size_bytes=0,
            read=partial(_read_whole, partial(read_file, failure.filename)),
            file=Path(failure.filename),
            problem=f"folder cannot be listed: {failure.strerror}",
        )
