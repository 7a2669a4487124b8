"""The progress of `prepare` on disk: a header, and a line for each finished shard."""

import fcntl
import os
import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from hpc_recolor.data.shards import MANIFEST, LeftOut, PrepareOptions, SetManifest, Split
from hpc_recolor.run_folder.files import FileRecord, file_damage, to_json
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json

JOURNAL = "progress.jsonl"
# Files of an unfinished data set, some under the name that they have while they are written (`files.temporary_name`;
# earlier versions left out its number). NFS keeps removed files that are still open, under names of its own.
_OWN_FILES = re.compile(
    rf"\.?((train|val|test)-(\d+\.(raw|jpeg)|index\.npy|names\.jsonl)|{MANIFEST})((\.[0-9a-f]{{8}})?\.writing)?|\.nfs\w+"
)


class JournalHeader(BaseModel):
    """First line: what is being prepared.

    source: identifies the photographs, by their names, sizes and contents. old_source: of the same photographs, as
    earlier versions wrote it, without their contents.
    """

    options: PrepareOptions
    source: str
    old_source: str = Field("", exclude=True)
    versions: dict[str, str]


class FinishedShard(BaseModel):
    """A shard in place, and all photographs processed since the one before.

    next: index of the first photograph, in order, that was not processed yet; digests: SHA-256 of the samples' pixels.
    """

    next: int
    split: Split
    file: str
    record: FileRecord
    names: list[str]
    lengths: list[int]
    digests: list[str]
    left_out: list[LeftOut]


class Journal:
    """The journal of a data set, new or resumed. It is locked: one process at a time holds it."""

    def __init__(self, out: Path, header: JournalHeader) -> None:
        """Raises UserError, with nothing changed, if `out` is another data set's, or another process prepares it."""
        self.out, self.header = out, header
        self.shards: list[FinishedShard] = []
        self.file = (out / JOURNAL).open("a+b")
        try:
            self._lock()
            if (out / MANIFEST).exists() or not self._is_in_place():
                raise UserError(f"--out={out}", "another process has just prepared it", "run the same command again")
            self._read()
            self._remove_unknown_files()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, shard: FinishedShard) -> None:
        """Record a finished shard durably."""
        self._write(shard)
        self.shards.append(shard)

    def roll_back(self) -> None:
        """Remove everything that was written."""
        self.shards.clear()
        self._remove_unknown_files()
        self.remove()

    def remove(self) -> None:
        """Remove the journal: the data set is complete, or removed."""
        (self.out / JOURNAL).unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out={self.out}", "another process prepares this data set", "wait for it or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _is_in_place(self) -> bool:
        """Whether the locked file still has its name."""
        try:
            return (self.out / JOURNAL).samefile(f"/proc/self/fd/{self.file.fileno()}")
        except FileNotFoundError:
            return False

    def _read(self) -> None:
        """Read finished shards, up to the first line that a kill cut short, or whose shard has changed since."""
        self.file.seek(0)
        content = self.file.read()
        first, *others = content.splitlines(keepends=True) or [b""]
        if not first.endswith(b"\n"):
            self.file.truncate(0)
            return self._write(self.header)
        try:
            length = self._read_header(first)
            for line in others:
                if not line.endswith(b"\n"):
                    break
                shard = FinishedShard.model_validate(parse_json(line))
                if not self._is_intact(shard):
                    break
                self.shards.append(shard)
                length += len(line)
        except ValueError:
            raise UserError(
                f"--out={self.out}", f"{JOURNAL} is damaged", "remove the folder and prepare it again"
            ) from None
        if length < len(content):
            self.file.truncate(length)

    def _read_header(self, line: bytes) -> int:
        """Check that the line continues what was begun, and take its header. Returns its length in bytes."""
        begun = JournalHeader.model_validate(parse_json(line))
        check_same(begun, self.header, self.out, "is being prepared as")
        if begun.versions != self.header.versions:
            raise UserError(
                f"--out={self.out}",
                f"was begun with {begun.versions}, installed are {self.header.versions}, which may decode other pixels",
                "continue with those versions, or remove the folder",
            )
        self.header = begun
        return len(line)

    def _is_intact(self, shard: FinishedShard) -> bool:
        """Reads all of the shard: hashing is as fast as a disk, and a fault that stays is found only in training."""
        damage = file_damage(self.out / shard.file, shard.record)
        if damage:
            print(f"{self.out}: {damage}; prepared again from there on", file=sys.stderr)
        return damage is None

    def _write(self, line: BaseModel) -> None:
        self.file.write(to_json(line) + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _remove_unknown_files(self) -> None:
        known = {shard.file for shard in self.shards}
        for file in self.out.iterdir():
            if _OWN_FILES.fullmatch(file.name) and file.name not in known and not file.name.startswith(".nfs"):
                file.unlink()


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds an unfinished data set, and nothing else."""
    names = [file.name for file in out.iterdir()]
    return JOURNAL in names and all(name == JOURNAL or _OWN_FILES.fullmatch(name) for name in names)


def check_same(old: JournalHeader | SetManifest, new: JournalHeader, out: Path, verb: str) -> None:
    """Raise UserError unless both describe the same data set. verb: what `out` does with the old one."""
    before, after = old.options.model_dump(), new.options.model_dump()
    changes = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if old.source not in (new.source, new.old_source):
        changes.append("the photographs found, by name or content")
    if changes:
        raise UserError(
            f"--out={out}",
            f"{verb} another data set ({'; '.join(changes)})",
            "give the same values, name another folder, or remove this one",
        )
