"""Photographs -> a prepared data set: decode, check, resize, write; killed anywhere, the next call goes on.

Photographs are looked at in an order drawn from names and seed, and end up in the shards in that order, however many
threads decode them. A finished shard is renamed into place and then noted in the journal, with everything that was left
out on the way to it. What the journal does not know did not happen: the next call removes it and does it again.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import hpc_recolor
from hpc_recolor.data import shards
from hpc_recolor.data.entries import Entry, Listing, list_entries
from hpc_recolor.data.journal import JOURNAL, Finished, Header, Journal, check_same, is_unfinished
from hpc_recolor.data.parallel import decoding_threads, map_in_order
from hpc_recolor.data.photo import SquareFit, UnfitPhotoError, colorfulness, to_square
from hpc_recolor.data.shards import SPLITS, LeftOut, PrepareOptions, SetManifest, Split
from hpc_recolor.run_folder.files import FileRecord, fsync, without_empty_folders, write_atomically
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import ProgressCallback

# A shard holds as many samples as fit into these bytes of raw pixels, in both formats.
SHARD_BYTES = 64 * 2**20
JPEG_QUALITY = 95  # with full chroma: color is what is learned


@dataclass(frozen=True)
class Sample:
    """A photograph made ready: what the shard holds, and the SHA-256 of its pixels."""

    content: bytes
    digest: str


@dataclass
class OpenShard:
    """The shard that is being filled."""

    split: Split
    number: int
    names: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, threads: int, progress: ProgressCallback
) -> SetManifest | None:
    """Prepare a data set in `out`, or finish one. Returns its manifest, or None if it was there already, untouched.

    progress: told (done, total), in photographs. Raises UserError if `out` holds something else, a source
    cannot be read, nothing usable is in it, or the disk is full; what was finished stays.
    """
    with _name_disk_errors(out), without_empty_folders(out):
        done = (out / shards.MANIFEST).exists()
        if out.exists() and not done and not (out.is_dir() and (is_unfinished(out) or not any(out.iterdir()))):
            raise UserError(f"--out={out}: holds files that are no data set's; name a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        listing = list_entries(sources, unpack_in=out)
        header = _header(listing, options)
        if done:
            check_same(shards.read_set(out, "--out"), header, out, "holds")
            if (out / JOURNAL).exists():
                (out / JOURNAL).unlink()
            return None
        with Journal(out, header) as journal:
            return Packing(out, listing, journal).run(threads, progress)


def is_prepared(out: Path, options: PrepareOptions) -> bool:
    """Whether `out` holds a whole data set with these options, whatever its source."""
    return (out / shards.MANIFEST).exists() and shards.read_set(out, "--out").options == options


class Packing:
    """One data set being written. What it knows is what the journal knows."""

    def __init__(self, out: Path, listing: Listing, journal: Journal) -> None:
        self.out, self.journal, self.options = out, journal, journal.header.options
        self.listing = listing
        self.entries = sorted(listing.entries, key=lambda entry: _draw(entry.name, self.options.seed))
        everything = len(self.entries)
        self.asked_for: dict[Split, int] = {
            "val": self.options.val,
            "test": self.options.test,
            "train": everything if self.options.limit is None else self.options.limit,
        }
        self.samples_per_shard = max(1, SHARD_BYTES // shards.pixel_bytes(self.options.size))
        self.left_out = [left for line in journal.lines for left in line.left_out]
        self.unsaved_left_out: list[LeftOut] = []
        self.seen = {digest for line in journal.lines for digest in line.digests}
        self.counts = Counter(dict.fromkeys(SPLITS, 0))
        for line in journal.lines:
            self.counts[line.split] += len(line.names)
        self.next = journal.lines[-1].next if journal.lines else 0
        self.shard = self._new_shard()

    def run(self, threads: int, progress: ProgressCallback) -> SetManifest:
        """Look at all photographs, or at as many as it takes; then write index, names and manifest."""
        with decoding_threads(threads) as pool:
            ready = map_in_order(pool, self._make, self.entries[self.next :], ahead=4 * threads)
            progress(*self._done())
            while self.shard and self.next < len(self.entries):
                self._take(self.entries[self.next], next(ready))
                progress(*self._done())
        if self.shard and self.shard.names:
            self._finish_shard()
        return self._finish()

    def _done(self) -> tuple[int, int]:
        """For the progress: photographs looked at, of all; with a limit samples kept, of those that are wanted."""
        if self.options.limit is None:
            return self.next, len(self.entries)
        return self.counts.total(), min(len(self.entries), sum(self.asked_for.values()))

    def _new_shard(self) -> OpenShard | None:
        """The next shard to fill, or None if every split has all it asked for."""
        for split in SPLITS:
            if self.counts[split] < self.asked_for[split]:
                return OpenShard(split, sum(line.split == split for line in self.journal.lines))
        return None

    def _make(self, entry: Entry) -> Sample | str:
        """The photograph as a sample, or why it is left out."""
        if entry.problem:
            return entry.problem
        try:
            pixels = to_square(entry.read(), SquareFit(self.options.size, self.options.fit), self.options.min_side)
        except UnfitPhotoError as error:
            return str(error)
        except OSError as error:
            return f"unreadable: {error.strerror or error}"
        except MemoryError:
            return "too large: does not fit into memory"
        if colorfulness(pixels) < self.options.min_colorfulness:
            return f"near-gray: colorfulness below {self.options.min_colorfulness:g}"
        content = pixels.tobytes() if self.options.format == "raw" else _to_jpeg(pixels)
        return Sample(content, hashlib.sha256(pixels.tobytes()).hexdigest())

    def _take(self, entry: Entry, made: Sample | str) -> None:
        self.next += 1
        if isinstance(made, Sample) and made.digest in self.seen:
            made = "duplicate: another photograph gives the same pixels"
        if isinstance(made, str):
            self.unsaved_left_out.append(LeftOut(name=entry.name, reason=made))
            return
        shard = self.shard
        assert shard
        self.seen.add(made.digest)
        shard.names.append(entry.name)
        shard.contents.append(made.content)
        shard.digests.append(made.digest)
        self.counts[shard.split] += 1
        if len(shard.names) == self.samples_per_shard or self.counts[shard.split] == self.asked_for[shard.split]:
            self._finish_shard()

    def _finish_shard(self) -> None:
        shard = self.shard
        assert shard
        name = shards.shard_name(shard.split, shard.number, self.options.format)
        record = self._write(name, b"".join(shard.contents))
        fsync(self.out)
        self.journal.append(
            Finished(
                next=self.next,
                split=shard.split,
                file=name,
                record=record,
                names=shard.names,
                lengths=[len(content) for content in shard.contents],
                digests=shard.digests,
                left_out=self.unsaved_left_out,
            )
        )
        self.left_out += self.unsaved_left_out
        self.unsaved_left_out = []
        self.shard = self._new_shard()

    def _write(self, name: str, content: bytes) -> FileRecord:
        write_atomically(self.out / name, content)
        return FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _finish(self) -> SetManifest:
        left_out = self.left_out + self.unsaved_left_out
        if not self.counts["train"]:
            self.journal.roll_back()
            raise UserError(
                f"--val={self.options.val}, --test={self.options.test}: {self.counts.total()} of {len(self.entries)} "
                f"photographs are usable, which leaves nothing to learn from; set fewer aside, or see what was left out"
                f"{_first_of(left_out)}"
            )
        files = {line.file: line.record for line in self.journal.lines}
        for split in SPLITS:
            lines = [line for line in self.journal.lines if line.split == split]
            if lines:
                rows = [row for number, line in enumerate(lines) for row in _index_rows(number, line.lengths)]
                names = [name for line in lines for name in line.names]
                for name, content in (
                    (f"{split}-index.npy", shards.index_bytes(rows)),
                    (f"{split}-names.jsonl", shards.names_bytes(names)),
                ):
                    files[name] = self._write(name, content)
        manifest = SetManifest(
            options=self.options,
            source=self.journal.header.source,
            found=len(self.entries),
            kept=self.counts.total(),
            beyond_limit=len(self.entries) - self.next,
            other_files=self.listing.other_files,
            splits={split: self.counts[split] for split in SPLITS if self.counts[split]},
            left_out_by_reason=dict(sorted(Counter(left.reason.split(":")[0] for left in left_out).items())),
            files=dict(sorted(files.items())),
            versions=self.journal.header.versions,
            left_out=sorted(left_out, key=lambda left: left.name),
        )
        fsync(self.out)
        write_atomically(self.out / shards.MANIFEST, json.dumps(manifest.model_dump(), indent=2).encode() + b"\n")
        fsync(self.out)
        self.journal.remove()
        return manifest


def _header(listing: Listing, options: PrepareOptions) -> Header:
    digest = hashlib.sha256()
    for entry in listing.entries:
        digest.update(os.fsencode(entry.name) + b"\0%d\n" % entry.size_bytes)
    versions = {"hpc_recolor": hpc_recolor.__version__, "pillow": version("pillow"), "numpy": version("numpy")}
    return Header(options=options, source=digest.hexdigest(), versions=versions)


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(b"%d\0" % seed + os.fsencode(name)).digest()


def _to_jpeg(pixels: "np.typing.NDArray[np.uint8]") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return content.getvalue()


def _index_rows(number: int, lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    offset = 0
    for length in lengths:
        yield number, offset, length
        offset += length


@contextmanager
def _name_disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot write {Path(error.filename or out).name} ({error.strerror}); make room or choose a "
            "folder that you may write to, and give the same command again: what is finished stays"
        ) from None


def _first_of(left_out: list[LeftOut]) -> str:
    return f"; the first left out is {left_out[0].name}: {left_out[0].reason}" if left_out else ""
