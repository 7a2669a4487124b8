"""What `prepare` has done so far, on disk: a header, and a line for each finished shard."""

import fcntl
import json
import os
import re
from pathlib import Path

from pydantic import BaseModel

from hpc_recolor.data.shards import MANIFEST, LeftOut, PrepareOptions, SetManifest, Split
from hpc_recolor.run_folder.files import FileRecord
from hpc_recolor.runtime.errors import UserError

JOURNAL = "progress.jsonl"
# Files of an unfinished data set, some with a dot in front and ".writing" behind while they are written. NFS keeps
# removed files that are still open under names of its own.
_OURS = re.compile(rf"\.?((train|val|test)-(\d+\.(raw|jpeg)|index\.npy|names\.jsonl)|{MANIFEST})(\.writing)?|\.nfs\w+")


class Header(BaseModel):
    """First line: what is being prepared."""

    options: PrepareOptions
    source: str
    versions: dict[str, str]


class Finished(BaseModel):
    """A shard in place, and all that happened since the one before.

    next: the first photograph, in order, that was not looked at yet; digests: of the samples' pixels.
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
    """The journal of a data set, begun or gone on with. One process at a time has it."""

    def __init__(self, out: Path, header: Header) -> None:
        """Raises UserError, with nothing changed, if `out` is another data set's, or another process prepares it."""
        self.out, self.header = out, header
        self.lines: list[Finished] = []
        self.file = (out / JOURNAL).open("a+b")
        try:
            self._lock()
            if (out / MANIFEST).exists() or not self._is_in_place():
                raise UserError(f"--out={out}: another process has just prepared it; give the same command again")
            self._read()
            self._remove_unknown_files()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, line: Finished) -> None:
        """Note a finished shard, for good."""
        self._write(line)
        self.lines.append(line)

    def roll_back(self) -> None:
        """Remove all that was written."""
        self.lines.clear()
        self._remove_unknown_files()
        self.remove()

    def remove(self) -> None:
        """Forget: the data set is whole, or gone."""
        (self.out / JOURNAL).unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out={self.out}: another process prepares this data set; wait for it or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _is_in_place(self) -> bool:
        """Whether the file that is locked still has its name."""
        try:
            return (self.out / JOURNAL).samefile(f"/proc/self/fd/{self.file.fileno()}")
        except FileNotFoundError:
            return False

    def _read(self) -> None:
        """Read what is done, up to the first line that a kill cut short, or whose shard is no longer as it was."""
        self.file.seek(0)
        content = self.file.read()
        first, *others = content.splitlines(keepends=True) or [b""]
        if not first.endswith(b"\n"):
            self.file.truncate(0)
            return self._write(self.header)
        try:
            begun = Header.model_validate(json.loads(first))
            check_same(begun, self.header, self.out, "is being prepared as")
            if begun.versions != self.header.versions:
                raise UserError(
                    f"--out={self.out}: was begun with {begun.versions}, here are {self.header.versions}, which may "
                    "give other pixels; go on with those versions, or remove the folder"
                )
            self.header, length = begun, len(first)
            for line in others:
                if not line.endswith(b"\n"):
                    break
                finished = Finished.model_validate(json.loads(line))
                if not self._is_there(finished):
                    break
                self.lines.append(finished)
                length += len(line)
        except ValueError:
            raise UserError(f"--out={self.out}: {JOURNAL} is damaged; remove the folder and prepare it again") from None
        if length < len(content):
            self.file.truncate(length)

    def _is_there(self, line: Finished) -> bool:
        shard = self.out / line.file
        return shard.is_file() and shard.stat().st_size == line.record.size_bytes

    def _write(self, line: BaseModel) -> None:
        # Through json: names may hold bytes that were no UTF-8, which JSON says with escapes.
        self.file.write(json.dumps(line.model_dump()).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _remove_unknown_files(self) -> None:
        known = {line.file for line in self.lines}
        for file in self.out.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in known and not file.name.startswith(".nfs"):
                file.unlink()


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds a data set that was begun, and nothing else."""
    names = [file.name for file in out.iterdir()]
    return JOURNAL in names and all(name == JOURNAL or _OURS.fullmatch(name) for name in names)


def check_same(old: Header | SetManifest, new: Header, out: Path, verb: str) -> None:
    """Raise UserError unless both are the same data set. verb: what `out` does with the old one."""
    before, after = old.options.model_dump(), new.options.model_dump()
    changes = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if old.source != new.source:
        changes.append("the photographs found, by name or size")
    if changes:
        raise UserError(
            f"--out={out}: {verb} another data set ({'; '.join(changes)}); give the same values, name another "
            "folder, or remove this one"
        )
