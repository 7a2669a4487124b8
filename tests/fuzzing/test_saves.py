"""Saves, kills, damage, renaming and other numbers of ranks, in any order: the newest whole checkpoint is found."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from tests.support.fuzzing import Fuzz
from tests.support.saves import Fault, attempt_killed, save, saved_value

# More than a save with pruning has.
STEPS = st.integers(0, 110)
MEMORY = Path("/dev/shm")


class Saves(RuleBasedStateMachine):
    """whole: the committed checkpoints that nothing has happened to, by images seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)  # a forked process has no others
        self.place = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.run = RunFolder(self.place / "run")
        self.images, self.ranks, self.renamed = 0, 2, 0
        self.whole: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @initialize()
    def begin(self) -> None:
        self.run.path.mkdir()

    @rule(more=st.integers(1, 3), keep=st.integers(1, 3), snapshot=st.none() | st.just(15))
    def save(self, more: int, keep: int, snapshot: int | None) -> None:
        """From what a run that resumes here has seen."""
        self.images = self.newest + more
        before = self.on_disk
        save(self.run, self.images, keep, snapshot, self.ranks)
        assert self.images in self.on_disk
        self.whole = (self.whole | {self.images}) & self.on_disk
        assert self.on_disk <= before | {self.images}

    @rule(more=st.integers(1, 3), position=STEPS)
    def killed_save(self, more: int, position: int) -> None:
        images = self.newest + more
        attempt_killed(self.run, position, images, self.ranks)
        self.expect_old_or_new(images)

    @rule(more=st.integers(1, 3), position=STEPS, code=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS]))
    def failed_save(self, more: int, position: int, code: int) -> None:
        def fail() -> None:
            raise OSError(code, os.strerror(code))

        images = self.newest + more
        try:
            with Fault(position, fail).active():
                save(self.run, images, ranks=self.ranks)
        except OSError as error:
            assert error.errno == code  # noqa: PT017
        self.expect_old_or_new(images)

    def expect_old_or_new(self, images: int) -> None:
        """Only pruning takes whole checkpoints away, and only once the new one is there."""
        gone = self.whole - self.on_disk
        assert not gone or images in self.on_disk
        found = checkpoints.find_damage(self.run.checkpoints / checkpoints.folder_name(images))
        self.whole = (self.whole - gone) | ({images} if found is None else set())

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), place=st.integers(0, 2**16), kind=st.sampled_from(["flip", "flip", "cut", "remove", "swap"]))
    def damage(self, data: st.DataObject, place: int, kind: str) -> None:
        images = data.draw(st.sampled_from(sorted(self.whole)))
        folder = self.run.checkpoints / checkpoints.folder_name(images)
        names = sorted(file.name for file in folder.iterdir())
        file = folder / data.draw(st.sampled_from(names))
        content = bytearray(file.read_bytes())
        at = place % len(content)
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "swap":
            other = folder / data.draw(st.sampled_from(names))
            content = bytearray(other.read_bytes() if other.read_bytes() != content else b"")
        file.write_bytes(content)
        if kind == "remove":
            file.unlink()
        # Without its hash the manifest is one of an earlier version.
        if (kind, file.name) != ("remove", checkpoints.MANIFEST_HASH):
            self.whole.discard(images)

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def rename_checkpoint(self, data: st.DataObject) -> None:
        """Into one that would be newer."""
        images = data.draw(st.sampled_from(sorted(self.whole)))
        target = self.run.checkpoints / checkpoints.folder_name(max(self.on_disk) + 1)
        (self.run.checkpoints / checkpoints.folder_name(images)).rename(target)
        self.whole.discard(images)

    @rule()
    def rename_run(self) -> None:
        self.renamed += 1
        self.run = RunFolder(self.run.path.rename(self.place / f"run{self.renamed}"))

    @rule(ranks=st.sampled_from([1, 2, 3]))
    def change_ranks(self, ranks: int) -> None:
        self.ranks = ranks

    @invariant()
    def resumes_from_the_newest_whole_one(self) -> None:
        if not self.whole:
            with pytest.raises(UserError):
                checkpoints.newest_intact(self.run)
            return
        path, skipped = checkpoints.newest_intact(self.run)
        assert path.name == checkpoints.folder_name(max(self.whole))
        assert len(skipped) == sum(images > max(self.whole) for images in self.on_disk)
        assert saved_value(path) == max(self.whole)

    @property
    def newest(self) -> int:
        return max(self.whole, default=0)

    @property
    def on_disk(self) -> set[int]:
        return {int(path.name.removeprefix("images-")) for path in checkpoints.committed(self.run)}


def test_saves_that_are_killed_damaged_renamed_and_resumed(fuzz: Fuzz) -> None:
    fuzz(Saves, examples=4, seeds=15, steps=12)
