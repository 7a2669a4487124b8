"""Photographs -> a prepared data set: decode, check, resize, write; killed at any time, the next call resumes.

Photographs are processed in an order drawn from names and seed, and stand in the shards in that order, however many
threads decode them. A finished shard is renamed into place and then recorded in the journal, together with everything
that was left out since the shard before. Whatever the journal does not record, the next call removes and does again.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from hpc_recolor.data import shards
from hpc_recolor.data.content import content_hashes
from hpc_recolor.data.entries import Entry, Listing, list_entries
from hpc_recolor.data.journal import JOURNAL, FinishedShard, Journal, JournalHeader, check_same, is_unfinished
from hpc_recolor.data.pack_sample import PackedSample, pack_sample
from hpc_recolor.data.parallel import decoding_threads, map_in_order
from hpc_recolor.data.shards import SPLITS, LeftOut, PrepareOptions, SetManifest, Split
from hpc_recolor.run_folder.files import (
    FileRecord,
    fsync,
    record_of_bytes,
    to_json,
    without_empty_folders,
    write_atomically,
)
from hpc_recolor.runtime.code_version import PACKAGE_VERSION
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import ProgressCallback, silent

# A shard holds as many samples as fit into these bytes of raw pixels, in both formats.
SHARD_BYTES = 64 * 2**20


@dataclass
class OpenShard:
    """The shard that is being filled."""

    split: Split
    number: int
    names: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def prepare(
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions,
    threads: int,
    progress: ProgressCallback,
    hashing: ProgressCallback = silent,
) -> SetManifest | None:
    """Prepare a data set in `out`, or finish one. Returns its manifest, or None if it was complete already.

    progress, hashing: called with (done, total), in photographs, the latter before and for those whose contents are not
    yet known. Raises UserError if `out` holds something else, a source
    cannot be read or has no usable photographs, or the disk is full; finished shards stay.
    """
    with _name_disk_errors(out), without_empty_folders(out):
        complete = (out / shards.MANIFEST).exists()
        if out.exists() and not complete and not (out.is_dir() and (is_unfinished(out) or not any(out.iterdir()))):
            raise UserError(f"--out={out}", "contains unrelated files", "name a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        listing = list_entries(sources, unpack_in=out)
        header = _header(listing, options, hashing)
        if complete:
            check_same(shards.read_set(out, "--out"), header, out, "holds")
            (out / JOURNAL).unlink(missing_ok=True)
            return None
        with Journal(out, header) as journal:
            return SetWriter(out, listing, journal).run(threads, progress)


def is_prepared(out: Path, options: PrepareOptions) -> bool:
    """Whether `out` holds a complete data set with these options, whatever its source."""
    return (out / shards.MANIFEST).exists() and shards.read_set(out, "--out").options == options


class SetWriter:
    """Writes one data set. Its state is derived from the journal alone."""

    def __init__(self, out: Path, listing: Listing, journal: Journal) -> None:
        self.out, self.journal, self.options = out, journal, journal.header.options
        self.other_files = listing.other_files
        self.entries = sorted(listing.entries, key=lambda entry: _sort_key(entry.name, self.options.seed))
        self.wanted: dict[Split, int] = {
            "val": self.options.val,
            "test": self.options.test,
            "train": len(self.entries) if self.options.limit is None else self.options.limit,
        }
        self.samples_per_shard = max(1, SHARD_BYTES // shards.pixel_bytes(self.options.size))
        self.left_out = [left_out for shard in journal.shards for left_out in shard.left_out]
        self.unsaved_left_out: list[LeftOut] = []
        self.digests = {digest for shard in journal.shards for digest in shard.digests}
        self.counts = Counter(dict.fromkeys(SPLITS, 0))
        for shard in journal.shards:
            self.counts[shard.split] += len(shard.names)
        self.next = journal.shards[-1].next if journal.shards else 0
        self.shard = self._new_shard()

    def run(self, threads: int, progress: ProgressCallback) -> SetManifest:
        """Process photographs until all splits are full or none is left; then write indexes, names and manifest."""
        with decoding_threads(threads) as pool:
            packed = map_in_order(
                pool, lambda entry: pack_sample(entry, self.options), self.entries[self.next :], ahead=4 * threads
            )
            progress(*self._done())
            while self.shard and self.next < len(self.entries):
                self._add(self.shard, self.entries[self.next], next(packed))
                progress(*self._done())
        if self.shard and self.shard.names:
            self._finish_shard(self.shard)
        if not self.counts["train"]:
            self.journal.roll_back()
            raise self._no_samples()
        return self._finish()

    def _done(self) -> tuple[int, int]:
        """(done, total): photographs processed of all; with a limit, samples kept of those wanted."""
        if self.options.limit is None:
            return self.next, len(self.entries)
        return self.counts.total(), min(len(self.entries), sum(self.wanted.values()))

    def _new_shard(self) -> OpenShard | None:
        """The next shard to fill, or None if every split is full."""
        for split in SPLITS:
            if self.counts[split] < self.wanted[split]:
                return OpenShard(split=split, number=sum(shard.split == split for shard in self.journal.shards))
        return None

    def _add(self, shard: OpenShard, entry: Entry, packed: PackedSample | str) -> None:
        """Add a sample to the open shard, or the reason to what was left out."""
        self.next += 1
        if isinstance(packed, PackedSample) and packed.digest in self.digests:
            packed = "duplicate: another photograph gives the same pixels"
        if isinstance(packed, str):
            self.unsaved_left_out.append(LeftOut(name=entry.name, reason=packed))
            return
        self.digests.add(packed.digest)
        shard.names.append(entry.name)
        shard.contents.append(packed.content)
        shard.digests.append(packed.digest)
        self.counts[shard.split] += 1
        if len(shard.names) == self.samples_per_shard or self.counts[shard.split] == self.wanted[shard.split]:
            self._finish_shard(shard)

    def _finish_shard(self, shard: OpenShard) -> None:
        name = shards.shard_name(shard.split, shard.number, self.options.format)
        record = self._write(name, b"".join(shard.contents))
        fsync(self.out)
        self.journal.append(
            FinishedShard(
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
        return record_of_bytes(content)

    def _finish(self) -> SetManifest:
        left_out = self.left_out + self.unsaved_left_out
        files = {shard.file: shard.record for shard in self.journal.shards} | self._write_indexes()
        manifest = SetManifest(
            options=self.options,
            source=self.journal.header.source,
            found=len(self.entries),
            kept=self.counts.total(),
            beyond_limit=len(self.entries) - self.next,
            other_files=self.other_files,
            splits={split: self.counts[split] for split in SPLITS if self.counts[split]},
            left_out_by_reason=dict(sorted(Counter(one.reason.split(":")[0] for one in left_out).items())),
            files=dict(sorted(files.items())),
            versions=self.journal.header.versions,
            left_out=sorted(left_out, key=lambda one: one.name),
        )
        fsync(self.out)
        write_atomically(self.out / shards.MANIFEST, to_json(manifest, indent=2) + b"\n")
        fsync(self.out)
        self.journal.remove()
        return manifest

    def _write_indexes(self) -> dict[str, FileRecord]:
        """Write index and names of every split that has samples."""
        files = {}
        for split in SPLITS:
            finished = [shard for shard in self.journal.shards if shard.split == split]
            if finished:
                rows = [row for number, shard in enumerate(finished) for row in _index_rows(number, shard.lengths)]
                names = [name for shard in finished for name in shard.names]
                for name, content in (
                    (f"{split}-index.npy", shards.index_bytes(rows)),
                    (f"{split}-names.jsonl", shards.names_bytes(names)),
                ):
                    files[name] = self._write(name, content)
        return files

    def _no_samples(self) -> UserError:
        left_out = self.left_out + self.unsaved_left_out
        first = f" (the first left out is {left_out[0].name}: {left_out[0].reason})" if left_out else ""
        return UserError(
            f"--val={self.options.val}, --test={self.options.test}",
            f"{self.counts.total()} of {len(self.entries)} photographs are usable, none is left to train on{first}",
            "hold out fewer, or repair the photographs that were left out",
        )


def _header(listing: Listing, options: PrepareOptions, hashing: ProgressCallback) -> JournalHeader:
    names = [os.fsencode(entry.name) + b"\0%d\n" % entry.size_bytes for entry in listing.entries]
    hashes = [one.encode() + b"\n" for one in content_hashes(listing.entries, hashing)]
    versions = {"hpc_recolor": PACKAGE_VERSION, "pillow": version("pillow"), "numpy": version("numpy")}
    return JournalHeader(
        options=options,
        source=f"content {hashlib.sha256(b''.join(names + hashes)).hexdigest()}",
        old_source=hashlib.sha256(b"".join(names)).hexdigest(),
        versions=versions,
    )


def _sort_key(name: str, seed: int) -> bytes:
    return hashlib.sha256(b"%d\0" % seed + os.fsencode(name)).digest()


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
            f"--out={out}",
            f"cannot write {Path(error.filename or out).name} ({error.strerror}); finished shards stay",
            "free space or choose a folder that you may write to, and run the same command again",
        ) from None
