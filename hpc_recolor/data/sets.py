"""The config's photographs or shards -> the samples that a run trains on, and those it is validated on."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.data import shards
from hpc_recolor.data.inputs import check_inputs
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.samples import PhotoFiles, Samples, Subset
from hpc_recolor.data.sources import UnreadablePhoto, find_photos, find_unreadable_photos
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import ProgressCallback, silent, timed


@dataclass(frozen=True)
class SampleSets:
    """Samples to train on and held-out ones, disjoint, and the photographs that cannot be read.

    fingerprint: identifies the training samples; another one means another set. old_fingerprint: of the same samples,
    as earlier versions computed it.
    """

    train: Samples
    held_out: Samples
    unreadable: list[UnreadablePhoto]
    fingerprint: str
    old_fingerprint: str

    def has_fingerprint(self, known: str) -> bool:
        """Whether a run that knows its training samples by that fingerprint was trained on these."""
        return known in (self.fingerprint, self.old_fingerprint)


def collect(config: Config, world: World, progress: ProgressCallback = silent) -> SampleSets:
    """Find and check the samples of a config; ranks share the work. All ranks get the same sets.

    progress: called with (photographs checked, total). Raises UserError if a folder is missing, a data set is damaged,
    or there are too few readable photographs.
    """
    on_main(world, lambda: check_inputs(config.data))
    return _from_shards(config, world) if config.data.shards else _from_photos(config, world, progress)


def fingerprint(folder: Path, hashes: Mapping[Path, str]) -> str:
    """Over the photographs' paths inside the folder and the hashes of their contents."""
    digest = hashlib.sha256()
    for path, one in hashes.items():
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{one}\n".encode())
    return f"content {digest.hexdigest()}"


def old_fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """Over paths and sizes in bytes, as earlier versions did. It misses a photograph that changed in place."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0%d\n" % path.stat().st_size)
    return digest.hexdigest()


def _from_photos(config: Config, world: World, progress: ProgressCallback) -> SampleSets:
    data = config.data
    assert data.photos
    photos, held_out_folder = data.photos, data.held_out
    train, held_out = on_main(world, lambda: _list_both(photos, held_out_folder))
    with timed("checked", shown=world.is_main, advice="`prepare` does that once for all runs") as cost:
        cost.photographs = len(train) + len(held_out)
        shares = gather(world, find_unreadable_photos((train + held_out)[world.rank :: world.size], data, progress))
    unreadable = sorted((photo for found, _ in shares for photo in found), key=lambda photo: photo.path)
    hashes = {path: one for _, share in shares for path, one in share.items()}
    unreadable_paths = {photo.path for photo in unreadable}
    train = [path for path in train if path not in unreadable_paths]
    held_out = [path for path in held_out if path not in unreadable_paths]
    if data.held_out is None:
        trained_on, validated_on = _split(
            len(train),
            config,
            available=f"{photos} has {len(train)} readable photographs{_first_of(unreadable)}",
            fix="hold out fewer or add photographs",
        )
        train, held_out = [train[number] for number in trained_on], [train[number] for number in validated_on]
    for key, folder, found in (("data.photos", photos, train), ("data.held_out", held_out_folder, held_out)):
        if not found:
            raise UserError(
                f"{key}={folder}",
                f"none of its photographs can be read, or all are held out{_first_of(unreadable)}",
                "name another folder, or copy the photographs again",
            )
    return SampleSets(
        train=PhotoFiles(train),
        held_out=PhotoFiles(held_out),
        unreadable=unreadable,
        fingerprint=fingerprint(photos, {path: hashes[path] for path in train}),
        old_fingerprint=on_main(world, lambda: old_fingerprint(photos, train)),
    )


def _from_shards(config: Config, world: World) -> SampleSets:
    """Splits train and val; without val, some of train are held out. Every file is verified, each by one rank."""
    data = config.data
    assert data.shards
    folder = data.shards
    manifest = on_main(world, lambda: shards.read_set(folder, "data.shards"))
    damages = gather(world, _find_damage(folder, sorted(manifest.files)[world.rank :: world.size], manifest))
    damage = next(filter(None, damages), None)
    if damage:
        raise damage
    train: Samples = shards.ShardSamples(folder, "train", manifest.options)
    if "val" in manifest.splits:
        held_out: Samples = shards.ShardSamples(folder, "val", manifest.options)
    else:
        trained_on, validated_on = _split(
            len(train),
            config,
            available=f"{folder} has {len(train)} samples and no val split",
            fix="hold out fewer, or prepare it with --val N",
        )
        train, held_out = Subset(train, trained_on), Subset(train, validated_on)
    known = _set_fingerprint(manifest)
    return SampleSets(train=train, held_out=held_out, unreadable=[], fingerprint=known, old_fingerprint=known)


def _find_damage(folder: Path, names: Sequence[str], manifest: shards.SetManifest) -> UserError | None:
    """The error of the first of these files that is damaged, as a value: all ranks must raise it together."""
    try:
        shards.verify(folder, names, manifest, "data.shards")
    except UserError as error:
        return error
    return None


def _set_fingerprint(manifest: shards.SetManifest) -> str:
    """SHA-256 over all files of the training split, independent of the other splits."""
    digest = hashlib.sha256()
    for name, record in manifest.files.items():
        if name.startswith("train"):
            digest.update(f"{name}\0{record.hash}\n".encode())
    return digest.hexdigest()


def _split(count: int, config: Config, available: str, fix: str) -> tuple[list[int], list[int]]:
    """Sample numbers to train on and to hold out, drawn by run.seed. available, fix: for the error if too few exist."""
    held_out = config.data.held_out_count
    if count <= held_out:
        raise UserError(f"data.held_out_count={held_out}", f"leaves nothing to train on: {available}", fix)
    drawn, _ = SampleOrder(count, config.run.seed).draw(0, held_out)
    validated_on = set(drawn.tolist())
    return [number for number in range(count) if number not in validated_on], sorted(validated_on)


def _list_both(photos: Path, held_out_folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Photographs to train on, and those held out by folder, which may lie inside the other and is left out of it."""
    train = find_photos(photos, "data.photos")
    if held_out_folder is None:
        return train, []
    held_out = find_photos(held_out_folder, "data.held_out")
    resolved = {path.resolve() for path in held_out}
    return [path for path in train if path.resolve() not in resolved], held_out


def _first_of(unreadable: list[UnreadablePhoto]) -> str:
    if not unreadable:
        return ""
    return f" ({len(unreadable)} cannot be read, the first is {unreadable[0].path}: {unreadable[0].reason})"
