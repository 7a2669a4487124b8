"""A folder -> the photographs in it, and which of them cannot be read."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from hpc_recolor.config import DataConfig
from hpc_recolor.data.entries import PHOTO_SUFFIXES, is_data_set, kind_of, read_file, walk
from hpc_recolor.data.inputs import check_photos_folder
from hpc_recolor.data.parallel import decoding_threads
from hpc_recolor.data.photo import UnfitPhotoError, decode
from hpc_recolor.data.pipeline import chosen_loader, undecodable
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped, shell_command
from hpc_recolor.runtime.progress import ProgressCallback, silent

CHECKED_TOGETHER = 32
OTHERS_SHOWN = 10


@dataclass(frozen=True)
class UnreadablePhoto:
    """A photograph that was left out, and why."""

    path: Path
    reason: str


def find_photos(folder: Path, key: str, without: Path | None = None) -> list[Path]:
    """Every photograph in a folder and its subfolders, links followed, sorted by path.

    A file with a photograph's suffix is one, and another that begins like one. Images of other kinds are named on
    stderr. Left out is what `walk` skips: hidden files and folders, run folders, data sets, and the folder `without`.
    key: the config key that named the folder, for messages. Raises UserError if the folder is missing or has none.
    """
    check_photos_folder(folder, key)
    if is_data_set(os.listdir(folder)):
        raise UserError(
            f"{key}={folder}",
            "is a prepared data set, not a folder of photographs",
            f"use {shell_command('--data.shards', folder)}",
        )
    files = [Path(inside, name) for inside, names in walk(folder, without) for name in names]
    kinds = {file: kind_of(file) for file in files}
    photos = [file for file, kind in kinds.items() if kind == "photograph"]
    _name_other_images(sorted(file for file, kind in kinds.items() if kind == "other image"))
    if not photos:
        raise UserError(
            f"{key}={folder}",
            "no photographs in it",
            f"name a folder with {', '.join(sorted(PHOTO_SUFFIXES))} files",
        )
    return sorted(photos)


def _name_other_images(files: Sequence[Path]) -> None:
    if files:
        more = f" and {len(files) - OTHERS_SHOWN} more" if len(files) > OTHERS_SHOWN else ""
        shown = ", ".join(escaped(str(file)) for file in files[:OTHERS_SHOWN])
        print(f"left out {len(files)} images of kinds that cannot be read: {shown}{more}", file=sys.stderr)


def print_left_out(photos: Sequence[UnreadablePhoto]) -> None:
    """Name photographs that cannot be read, and why, on stderr."""
    if photos:
        print(f"left out {len(photos)} photographs that cannot be read:", file=sys.stderr)
    for photo in photos:
        print(escaped(f"  {photo.path}: {photo.reason}"), file=sys.stderr)


def find_unreadable_photos(
    paths: Sequence[Path], data: DataConfig, progress: ProgressCallback = silent
) -> tuple[list[UnreadablePhoto], dict[Path, str]]:
    """Photographs that Pillow, which is strict, cannot decode, nor DALI if it loads them in training; and the hash of
    each photograph's content (XXH3 with 128 bits, hex).

    progress: called with (done, total).
    """
    found: list[UnreadablePhoto] = []
    hashes: dict[Path, str] = {}
    with decoding_threads() as pool:
        for start in range(0, len(paths), CHECKED_TOGETHER):
            group = paths[start : start + CHECKED_TOGETHER]
            read = dict(zip(group, pool.map(_read, group), strict=True))
            hashes |= {path: xxhash.xxh3_128_hexdigest(content) for path, (content, _) in read.items()}
            found += [UnreadablePhoto(path=path, reason=reason) for path, (_, reason) in read.items() if reason]
            readable = {
                path: np.frombuffer(content, np.uint8) for path, (content, reason) in read.items() if not reason
            }
            if chosen_loader(data) == "dali":
                failed = [list(readable)[number] for number in undecodable(list(readable.values()))]
                found += [UnreadablePhoto(path=path, reason="unreadable: DALI cannot decode it") for path in failed]
            progress(start + len(group), len(paths))
    return sorted(found, key=lambda photo: photo.path), hashes


def _read(path: Path) -> tuple[bytes, str | None]:
    """A photograph's content, and why Pillow cannot decode it, if so."""
    try:
        content = read_file(path)
        decode(content)
    except UnfitPhotoError as error:
        return content, str(error)
    except OSError as error:
        return b"", f"unreadable: {error.strerror or error}"
    return content, None
