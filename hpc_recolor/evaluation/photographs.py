"""The photographs that a run is measured on: found, and divided among the ranks in batches that never change."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hpc_recolor.config import Config, DataConfig
from hpc_recolor.data import shards
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.batches import load_images
from hpc_recolor.data.entries import is_data_set
from hpc_recolor.data.samples import PhotoFiles, Samples, Subset
from hpc_recolor.data.sets import collect
from hpc_recolor.data.sources import find_photos, find_unreadable_photos, print_left_out
from hpc_recolor.runtime.distributed import World, gather, on_main
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress

# Batch k goes to rank k % ranks, so every image is always in the same batch: the batch decides the last bits of
# convolutions, and any number of ranks has to compute the same numbers.
BATCH_SIZE = 8

LOADED_TOGETHER_BYTES = 2**26
CACHE_BYTES = 2**29  # a rank's share is kept in memory if it is no larger


@dataclass(frozen=True)
class Photographs:
    """Photographs by number. name: of the folder that the results go to; root: folder that `label` leaves out."""

    name: str
    samples: Samples
    data: DataConfig
    world: World
    root: Path | None = None
    _cached: list[Batch] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of photographs."""
        return len(self.samples)

    def label(self, number: int) -> str:
        """A photograph's name inside its folder or data set."""
        name = self.samples.name(number)
        return os.path.relpath(name, self.root) if self.root else name

    def rounds(self, task: str) -> Iterator[Batch | None]:
        """This rank's batches, in order; None in a last round without one for it. Rank 0 shows progress.

        task: what the progress bar says.
        """
        together = BATCH_SIZE * self.world.size
        with show_progress(task, shown=self.world.is_main) as show:
            batches = self._batches()
            for start in range(0, len(self), together):
                yield next(batches, None)
                show(min(start + together, len(self)), len(self))

    def _batches(self) -> Iterator[Batch]:
        if self._cached:
            yield from self._cached
            return
        image_bytes = shards.pixel_bytes(self.data.size)
        first, step = BATCH_SIZE * self.world.rank, BATCH_SIZE * self.world.size
        starts = list(range(first, len(self), step))
        at_once = max(1, LOADED_TOGETHER_BYTES // (image_bytes * BATCH_SIZE))
        fits = len(starts) * BATCH_SIZE * image_bytes <= CACHE_BYTES
        for place in range(0, len(starts), at_once):
            for batch in self._load(starts[place : place + at_once]):
                if fits:
                    self._cached.append(batch)
                yield batch

    def _load(self, starts: list[int]) -> Iterator[Batch]:
        batches = [range(start, min(start + BATCH_SIZE, len(self))) for start in starts]
        numbers = [number for batch in batches for number in batch]
        images = load_images(Subset(self.samples, numbers), self.data, self.world)
        for place, batch in enumerate(batches):
            start = place * BATCH_SIZE
            yield Batch(images[start : start + len(batch)], torch.tensor(batch))


def find_photographs(config: Config, folder: Path | None, learned: str, world: World) -> Photographs:
    """The run's own test photographs, or those of a folder; all ranks get the same.

    learned: fingerprint of the photographs that the run was trained on. Raises UserError if they are missing, do not
    fit the run, are fewer than two, or cannot be separated from those that it was trained on.
    """
    found = _in_folder(folder, config, world) if folder else _own(config, learned, world)
    if len(found) < 2:
        raise UserError(
            f"data={folder or found.name}",
            f"a test set needs at least two images, this one has {len(found)}",
            "name more with --data DIR",
        )
    return found


def _own(config: Config, learned: str, world: World) -> Photographs:
    data = config.data
    key, folder = ("shards", data.shards) if data.shards else ("photos", data.held_out or data.photos)
    exists = on_main(world, lambda: folder is not None and folder.is_dir())
    if folder is None or not exists:
        raise UserError(
            f"data.{key}={folder}", "no longer exists, or not on this machine", "name photographs with --data DIR"
        )
    if key == "photos" and data.held_out:
        return _photos(folder, "held-out", "data.held_out", data, world)
    with show_progress("checking photographs", shown=world.is_main) as progress:
        sets = collect(config, world, progress)
    if not sets.has_fingerprint(learned):
        raise UserError(
            f"data.{key}={folder}",
            "has changed since the run was trained, so its test photographs are unknown",
            "name photographs with --data DIR",
        )
    if data.shards is None:
        return Photographs("held-out", sets.held_out, data, world, root=folder)
    manifest = on_main(world, lambda: shards.read_set(folder, "data.shards"))
    if "test" in manifest.splits:
        return Photographs("test", shards.ShardSamples(folder, "test", manifest.options), data, world)
    return Photographs("val" if "val" in manifest.splits else "held-out", sets.held_out, data, world)


def _in_folder(folder: Path, config: Config, world: World) -> Photographs:
    name = re.sub(r"[^\w.-]", "-", folder.resolve().name) or "data"
    if not on_main(world, lambda: folder.is_dir() and is_data_set(os.listdir(folder))):
        return _photos(folder, name, "data", config.data, world)
    split, options = on_main(world, lambda: _check_split(folder, config.data))
    return Photographs(name, shards.ShardSamples(folder, split, options), config.data, world)


def _check_split(folder: Path, data: DataConfig) -> tuple[shards.Split, shards.PrepareOptions]:
    """The split of a data set to measure on, verified, and how the data set was prepared."""
    manifest = shards.read_set(folder, "data")
    options = manifest.options
    for key, value, ours in (("size", options.size, data.size), ("fit", options.fit, data.fit)):
        if value != ours:
            raise UserError(
                f"data={folder}",
                f"was prepared with {key}={value}, the run was trained with data.{key}={ours}",
                f"prepare the photographs with --{key} {ours}, or name a folder of photographs",
            )
    splits: list[shards.Split] = [split for split in ("test", "val") if split in manifest.splits]
    if not splits:
        raise UserError(f"data={folder}", "has neither a test nor a val split", "prepare it with --test N")
    shards.verify(folder, [file for file in manifest.files if file.startswith(f"{splits[0]}-")], manifest, "data")
    return splits[0], options


def _photos(folder: Path, name: str, key: str, data: DataConfig, world: World) -> Photographs:
    paths = on_main(world, lambda: find_photos(folder, key))
    with show_progress("checking photographs", shown=world.is_main) as progress:
        shares = gather(world, find_unreadable_photos(paths[world.rank :: world.size], data, progress)[0])
    unreadable = sorted((photo for share in shares for photo in share), key=lambda photo: photo.path)
    if world.is_main:
        print_left_out(unreadable)
    bad = {photo.path for photo in unreadable}
    return Photographs(name, PhotoFiles([path for path in paths if path not in bad]), data, world, root=folder)
