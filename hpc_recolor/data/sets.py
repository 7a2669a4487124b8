"""The config's photographs or shards -> what a run learns from, and what it is measured on."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.data import shards
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.samples import PhotoFiles, Samples, Subset
from hpc_recolor.data.sources import UnreadablePhoto, find_photos, find_unreadable_photos
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import ProgressCallback, silent


@dataclass(frozen=True)
class SampleSets:
    """What to learn from and what to measure on, disjoint, and the photographs that were left out.

    fingerprint: of the samples to learn from; another one means another set.
    """

    train: Samples
    held_out: Samples
    unreadable: list[UnreadablePhoto]
    fingerprint: str


def collect(config: Config, world: World, progress: ProgressCallback = silent) -> SampleSets:
    """Find and check the samples of a config; ranks share the work. All ranks get the same sets.

    progress: told (photographs checked, in all). Raises UserError if a folder is missing, a data set is damaged, or
    there are too few readable photographs.
    """
    data = config.data
    if (data.photos is None) == (data.shards is None):
        both = "are both set" if data.photos else "are not set"
        raise UserError(
            f"data.photos and data.shards {both}: name a folder of photographs with --data.photos DIR, or one that "
            "`prepare` wrote with --data.shards DIR"
        )
    return _from_shards(config, world) if data.shards else _from_photos(config, world, progress)


def fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """SHA-256 over the photographs' paths inside the folder and their sizes in bytes: is it still the same set?"""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0%d\n" % path.stat().st_size)
    return digest.hexdigest()


def _from_photos(config: Config, world: World, progress: ProgressCallback) -> SampleSets:
    data = config.data
    assert data.photos
    photos, aside = data.photos, data.held_out
    train, held_out = on_main(world, lambda: _list_both(photos, aside))
    shares = gather(world, find_unreadable_photos((train + held_out)[world.rank :: world.size], data, progress))
    bad = sorted((photo for share in shares for photo in share), key=lambda photo: photo.path)
    unreadable = {photo.path for photo in bad}
    train = [path for path in train if path not in unreadable]
    held_out = [path for path in held_out if path not in unreadable]
    if data.held_out is None:
        held = f"{photos} has {len(train)} readable photographs{_first_of(bad)}; set fewer aside or add photographs"
        learned, measured = _set_aside(len(train), config, held)
        train, held_out = [train[number] for number in learned], [train[number] for number in measured]
    for key, folder, found in (("data.photos", photos, train), ("data.held_out", aside, held_out)):
        if not found:
            raise UserError(f"{key}={folder}: none of its photographs can be read, or all are held out{_first_of(bad)}")
    mark = on_main(world, lambda: fingerprint(photos, train))
    return SampleSets(PhotoFiles(train), PhotoFiles(held_out), bad, mark)


def _from_shards(config: Config, world: World) -> SampleSets:
    """Splits train and val; without val, some of train are set aside. Every file is verified, each by one rank."""
    data = config.data
    assert data.shards
    folder = data.shards
    manifest = on_main(world, lambda: shards.read_set(folder, "data.shards"))
    if data.held_out:
        raise UserError(f"data.held_out={data.held_out}: with data.shards, `prepare --val N` sets photographs aside")
    if manifest.options.size != data.size:
        raise UserError(
            f"data.size={data.size}: {folder} holds pictures of {manifest.options.size} px; use --data.size "
            f"{manifest.options.size}, or prepare the photographs with --size {data.size}"
        )
    failures = gather(world, _damage(folder, sorted(manifest.files)[world.rank :: world.size], manifest))
    damaged = next(filter(None, failures), None)
    if damaged:
        raise UserError(damaged)
    train: Samples = shards.ShardSamples(folder, "train", manifest.options)
    if "val" in manifest.splits:
        held_out: Samples = shards.ShardSamples(folder, "val", manifest.options)
    else:
        held = f"{folder} has {len(train)} samples and no val split; set fewer aside, or prepare it with --val N"
        learned, measured = _set_aside(len(train), config, held)
        train, held_out = Subset(train, learned), Subset(train, measured)
    return SampleSets(train, held_out, [], _set_mark(manifest))


def _damage(folder: Path, names: Sequence[str], manifest: shards.SetManifest) -> str | None:
    """What is wrong with these files, for all ranks to hear."""
    try:
        shards.verify(folder, names, manifest, "data.shards")
    except UserError as error:
        return str(error)
    return None


def _set_mark(manifest: shards.SetManifest) -> str:
    """SHA-256 over all that a split's samples are made of, whatever else was prepared beside them."""
    digest = hashlib.sha256()
    for name, record in manifest.files.items():
        if name.startswith("train"):
            digest.update(f"{name}\0{record.sha256}\n".encode())
    return digest.hexdigest()


def _set_aside(count: int, config: Config, held: str) -> tuple[list[int], list[int]]:
    """Numbers to learn from and to measure on, drawn by run.seed. held: what there is, should it not be enough."""
    aside = config.data.held_out_count
    if count <= aside:
        raise UserError(f"data.held_out_count={aside} leaves nothing to learn from: {held}")
    drawn, _ = SampleOrder(count, config.run.seed).draw(0, aside)
    measured = set(drawn.tolist())
    return [number for number in range(count) if number not in measured], sorted(measured)


def _list_both(photos: Path, aside: Path | None) -> tuple[list[Path], list[Path]]:
    """What to learn from, and what is held out by folder, which may lie inside the other and is not learned from."""
    train = find_photos(photos, "data.photos")
    if aside is None:
        return train, []
    held_out = find_photos(aside, "data.held_out")
    measured = {path.resolve() for path in held_out}
    return [path for path in train if path.resolve() not in measured], held_out


def _first_of(bad: list[UnreadablePhoto]) -> str:
    return f" ({len(bad)} cannot be read, the first is {bad[0].path}: {bad[0].reason})" if bad else ""
