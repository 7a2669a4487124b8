"""Preparing, kills, damage and photographs that change, in any order: what comes of it is what a fresh call makes."""

import errno
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hpc_recolor.data import pack, shards
from hpc_recolor.data.shards import PrepareOptions
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import silent
from tests.conftest import contents, paint_photo
from tests.support.fuzzing import Fuzz
from tests.support.saves import Fault

SIDE = 32
STEPS = st.integers(0, 90)
MEMORY = Path("/dev/shm")
# The last is not UTF-8.
NAMES = [*(f"{number}.png" for number in range(8)), "ü.png", os.fsdecode(b"\xff.png")]


class Prepares(RuleBasedStateMachine):
    """damaged: whether a file of the data set was changed behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.photos, self.out = self.place / "photos", self.place / "set"
        self.options = PrepareOptions(size=SIDE, val=2, min_colorfulness=0)
        self.painted = 0
        self.damaged = False

    def teardown(self) -> None:
        self.prepare()
        shutil.rmtree(self.place)

    @initialize()
    def begin(self) -> None:
        self.photos.mkdir()
        for name in NAMES[1:]:
            self.paint(name)

    @rule(name=st.sampled_from(NAMES))
    def paint(self, name: str) -> None:
        """Add a photograph, or change one in place."""
        self.painted += 1
        paint_photo(self.painted, SIDE, SIDE).save(self.photos / name)

    @precondition(lambda self: len(list(self.photos.iterdir())) > 4)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        (self.photos / data.draw(st.sampled_from(sorted(os.listdir(self.photos))))).unlink()

    @rule(val=st.integers(0, 3), form=st.sampled_from(["raw", "jpeg"]))
    def change_options(self, val: int, form: shards.ShardFormat) -> None:
        self.options = self.options.model_copy(update={"val": val, "format": form})

    @rule()
    def prepare(self) -> None:
        try:
            self.call(self.out)
        except UserError as error:
            self.after_refusal(error)
            return
        if self.damaged:
            return
        manifest = shards.read_set(self.out, "--out")
        shards.verify(self.out, manifest.files, manifest, "--out")
        fresh = self.place / "fresh"
        self.call(fresh)
        assert contents(self.out) == contents(fresh)
        shutil.rmtree(fresh)

    def after_refusal(self, error: UserError) -> None:
        """It is another data set, which remains as it was, or is damaged; the user removes it."""
        is_other = "another data set" in error.problem
        assert is_other or self.damaged, error
        shutil.rmtree(self.out)
        self.damaged = False

    @rule(position=STEPS)
    def killed_prepare(self, position: int) -> None:
        child = os.fork()
        if not child:
            code = 1
            try:
                with Fault(position, lambda: os.kill(os.getpid(), signal.SIGKILL)).active():
                    self.call(self.out)
                code = 0
            except UserError:
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)

    @rule(position=STEPS, code=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def failed_prepare(self, position: int, code: int) -> None:
        def fail() -> None:
            raise OSError(code, os.strerror(code))

        try:
            with Fault(position, fail).active():
                self.call(self.out)
        except UserError as error:
            assert all((error.subject, error.problem, error.fix))  # noqa: PT017

    @precondition(lambda self: self.out.is_dir() and any(self.out.iterdir()))
    @rule(data=st.data(), place=st.integers(0, 2**16), kind=st.sampled_from(["flip", "cut", "remove"]))
    def damage(self, data: st.DataObject, place: int, kind: str) -> None:
        file = self.out / data.draw(st.sampled_from(sorted(os.listdir(self.out))))
        content = bytearray(file.read_bytes())
        if not content:
            return
        at = place % len(content)
        if kind == "cut":
            del content[at:]
        else:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        self.damaged = True
        if kind == "remove":
            file.unlink()
        else:
            file.write_bytes(content)

    def call(self, out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self.place / "cache"))
            patch.setattr(pack, "SHARD_BYTES", 3 * shards.pixel_bytes(SIDE))
            pack.prepare([self.photos], out, self.options, threads=1, progress=silent)


def test_prepares_that_are_killed_damaged_and_resumed_with_other_photographs(fuzz: Fuzz) -> None:
    fuzz(Prepares, examples=4, seeds=10, steps=12)
