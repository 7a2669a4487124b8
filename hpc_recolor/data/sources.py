"""A folder -> the photographs in it that can be read."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.pipeline import undecodable
from hpc_recolor.distributed import World, gather, on_main
from hpc_recolor.errors import UserError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
# By content, in Pillow's words: what DALI decodes too.
PHOTO_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP"})
CHECKED_TOGETHER = 32


@dataclass(frozen=True)
class BadPhoto:
    """A photograph that was left out, and why."""

    path: Path
    reason: str


def find_photos(folder: Path, key: str, without: Path | None = None) -> list[Path]:
    """Every photograph in a folder and its subfolders, links followed, sorted by path.

    Left out are hidden files and folders, run folders (what runs draw is no photograph), and the folder `without`.
    key: the config key that named the folder, for the message. Raises UserError if the folder is missing or has none.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; name a folder of photographs")
    photos = []
    visited = {os.path.realpath(without)} - {os.path.realpath(folder)} if without else set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        is_run = "config.yaml" in files and "samples" in folders and place != str(folder)
        if here in visited or is_run:
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in files if Path(name).suffix.lower() in PHOTO_SUFFIXES and not name.startswith(".")]
        photos += [Path(place, name) for name in names]
    if not photos:
        raise UserError(f"{key}={folder}: no photographs in it; expected {', '.join(sorted(PHOTO_SUFFIXES))} files")
    return sorted(photos)


Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None: ...


def find_bad_photos(paths: Sequence[Path], progress: Progress = _silent) -> list[BadPhoto]:
    """Decode every photograph with Pillow, which is strict, and with DALI, which trains: those that either cannot read.

    progress: told (done, total).
    """
    bad = []
    with warnings.catch_warnings(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        warnings.simplefilter("ignore")  # odd metadata is no reason to leave a photograph out
        for start in range(0, len(paths), CHECKED_TOGETHER):
            group = paths[start : start + CHECKED_TOGETHER]
            reasons = dict(zip(group, pool.map(unreadable_reason, group), strict=True))
            bad += [BadPhoto(path, reason) for path, reason in reasons.items() if reason]
            readable = [path for path, reason in reasons.items() if not reason]
            bad += [BadPhoto(path, "DALI cannot decode it") for path in undecodable(readable)]
            progress(start + len(group), len(paths))
    return sorted(bad, key=lambda photo: photo.path)


def unreadable_reason(path: Path) -> str | None:
    """Why Pillow cannot decode a photograph, or None if it can."""
    try:
        with Image.open(path) as photo:
            if photo.format not in PHOTO_FORMATS:
                return f"holds {photo.format}, expected one of {', '.join(sorted(PHOTO_FORMATS))}"
            photo.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """SHA-256 over the photographs' paths inside the folder and their sizes in bytes: is it still the same set?"""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class PhotoSets:
    """Readable photographs to learn from and to measure on, disjoint, and what was left out."""

    train: list[Path]
    held_out: list[Path]
    bad: list[BadPhoto]
    fingerprint: str


def collect(config: Config, world: World, progress: Progress = _silent) -> PhotoSets:
    """Find and check the photographs of a config; ranks share the work. All ranks get the same sets.

    Raises UserError if a folder is missing, or has too few readable photographs.
    """
    data = config.data
    if data.photos is None:
        raise UserError("data.photos is not set: name a folder of photographs with --data.photos DIR")
    photos, aside = data.photos, data.held_out
    train, held_out = on_main(world, lambda: _list_both(photos, aside))
    shares = gather(world, find_bad_photos((train + held_out)[world.rank :: world.size], progress))
    bad = sorted((photo for share in shares for photo in share), key=lambda photo: photo.path)
    unreadable = {photo.path for photo in bad}
    train = [path for path in train if path not in unreadable]
    held_out = [path for path in held_out if path not in unreadable]
    if data.held_out is None:
        if len(train) <= data.held_out_count:
            raise UserError(
                f"data.held_out_count={data.held_out_count} leaves nothing to learn from: {data.photos} has "
                f"{len(train)} readable photographs{_first_of(bad)}; set fewer aside or add photographs"
            )
        drawn, _ = SampleOrder(len(train), config.run.seed).draw(0, data.held_out_count)
        chosen = set(drawn.tolist())
        held_out = [path for number, path in enumerate(train) if number in chosen]
        train = [path for number, path in enumerate(train) if number not in chosen]
    for key, folder, found in (("data.photos", photos, train), ("data.held_out", aside, held_out)):
        if not found:
            raise UserError(f"{key}={folder}: none of its photographs can be read, or all are held out{_first_of(bad)}")
    return PhotoSets(train, held_out, bad, on_main(world, lambda: fingerprint(photos, train)))


def _list_both(photos: Path, aside: Path | None) -> tuple[list[Path], list[Path]]:
    """What to learn from, and what is held out by folder, which may lie inside the other and is not learned from."""
    train = find_photos(photos, "data.photos")
    if aside is None:
        return train, []
    held_out = find_photos(aside, "data.held_out")
    measured = {path.resolve() for path in held_out}
    return [path for path in train if path.resolve() not in measured], held_out


def _first_of(bad: list[BadPhoto]) -> str:
    return f" ({len(bad)} cannot be read, the first is {bad[0].path}: {bad[0].reason})" if bad else ""
