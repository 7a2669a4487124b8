"""Small checkpoints, and saves that a fault meets at any of their steps on disk.

As a program, `python -m tests.support.saves FOLDER SITUATION ...`, it kills a process at each step in turn.
"""

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.run_folder import checkpoint_writer, checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import write

RANKS = 2
NUMEL = 6


def make_manifest(images_seen: int, **changes: Any) -> Manifest:
    """A manifest of two networks with one weight each, by default of files that are not there."""
    record = {"size_bytes": 0, "sha256": ""}
    values: dict[str, Any] = {
        "images_seen": images_seen,
        "world_size": RANKS,
        "zero_stage": 1,
        "photos": "fingerprint",
        "progress": {"generator.steps": 3, "generator.loss_scale": 65536.0},
        "versions": {"torch": "2"},
        "commit": "abc",
        "config": {"run": {"seed": 0}},
        "parameters": {"generator/w": [2, 3], "discriminator/w": [6]},
        "files": dict.fromkeys(checkpoints.expected_files(changes.get("world_size", RANKS)), record),
    }
    return Manifest.model_validate(values | changes)


def save(
    run: RunFolder, images_seen: int, keep: int = 1, snapshot_epoch: int | None = None, ranks: int = RANKS
) -> Path:
    """A whole save of two ranks, or another divisor of NUMEL, in which every weight is `images_seen`."""
    beside = checkpoint_writer.begin(run)
    files, part = {}, torch.full((NUMEL // ranks,), float(images_seen))
    for rank in range(ranks):
        shard = {f"{network}/weight/w@{rank * len(part)}": part for network in ("generator", "discriminator")}
        own = {"random": torch.full((5,), images_seen, dtype=torch.uint8)}
        for name, tensors in ((checkpoints.shard_file, shard), (checkpoints.rank_file, own)):
            file = name(rank, ranks)
            files[file] = write(beside / file, tensors)
    manifest = make_manifest(images_seen, snapshot_epoch=snapshot_epoch, files=files, world_size=ranks)
    path = checkpoint_writer.commit(run, beside, manifest)
    checkpoint_writer.remove(checkpoint_writer.prune(run, keep, path))
    return path


def damage(path: Path) -> None:
    """Turn one bit of a checkpoint's last shard around."""
    file = path / checkpoints.shard_file(RANKS - 1, RANKS)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def saved_value(path: Path) -> float:
    """What the weights of a checkpoint say that it was saved with."""
    weights = checkpoints.evaluation_weights(path, checkpoints.read_manifest(path))["w"]
    assert weights.shape == (2, 3) and (weights == weights[0, 0]).all()
    return float(weights[0, 0])


class Fault:
    """Does `act` at the step of that number, of those that a save makes on disk. There are steps before and after each
    call, and one in the middle of each write."""

    def __init__(self, position: int, act: Callable[[], None]) -> None:
        self.position, self.act, self.steps = position, act, 0
        self.met = ""

    def step(self, name: str) -> None:
        self.steps += 1
        if self.steps - 1 == self.position:
            self.met = name
            self.act()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            self.step(f"before {call.__name__}")
            result = call(*arguments, **named)
            self.step(f"after {call.__name__}")
            return result

        return stepped

    @contextmanager
    def active(self) -> Iterator[None]:
        """Until the end of the block, files are opened, written, synced, renamed and removed step by step."""
        fault, real_open = self, io.open

        class Writer(io.BufferedWriter):
            def write(self, data: Any, /) -> int:
                whole = memoryview(data)
                fault.step("before write")
                super().write(whole[: len(whole) // 2])
                super().flush()
                fault.step("in the middle of write")
                super().write(whole[len(whole) // 2 :])
                fault.step("after write")
                return len(whole)

        def open_stepped(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if "w" not in mode:
                return real_open(file, mode, *rest, **named)
            assert mode == "wb"
            fault.step("before open")
            stream = Writer(io.FileIO(file, "w"))
            try:
                fault.step("after open")
            except BaseException:
                stream.close()
                raise
            return stream

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", open_stepped)
            for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir"):
                patch.setattr(os, name, self.around(getattr(os, name)))
            yield


def _plain(run: RunFolder) -> None:
    save(run, 4)


def _with_remnants(run: RunFolder) -> None:
    save(run, 4)
    for name in (".writing-1", ".removing-images-000000000002"):
        shutil.copytree(run.checkpoints / "images-000000000004", run.checkpoints / name)


def _passing_a_damaged_one(run: RunFolder) -> None:
    save(run, 4)
    damage(save(run, 8, keep=2))


def _at_the_same_place(run: RunFolder) -> None:
    save(run, 4)
    save(run, 8, keep=2)


# What lies in a run folder before the 8th image is saved.
SITUATIONS = {
    "plain": _plain,
    "with remnants": _with_remnants,
    "passing a damaged one": _passing_a_damaged_one,
    "at the same place": _at_the_same_place,
}


def at_each_step(folder: Path, situation: str, attempt: Callable[[RunFolder, int], bool]) -> int:
    """Prepare the situation and `attempt` a save of image 8 with a fault at a step, for each step in turn.

    attempt: says whether the fault was met. Asserts that afterwards the newest whole checkpoint is the one before or
    the new one, that none is damaged by it, and that the next save works and leaves nothing but itself. Returns the
    number of steps.
    """
    for position in count():
        run = RunFolder(folder / str(position))
        run.path.mkdir()
        SITUATIONS[situation](run)
        best, damaged = checkpoints.newest_intact(run)[0], _damaged(run)
        met = attempt(run, position)
        path, _ = checkpoints.newest_intact(run)
        assert path.name in (best.name, "images-000000000008")
        assert _damaged(run) <= damaged
        assert met or path.name == "images-000000000008"
        assert saved_value(path) == int(path.name.removeprefix("images-"))
        assert saved_value(save(run, 12)) == 12
        assert [place.name for place in run.checkpoints.iterdir()] == ["images-000000000012"]
        shutil.rmtree(run.path)
        if not met:
            return position
    raise AssertionError("unreachable")


def _damaged(run: RunFolder) -> set[Path]:
    return {path for path in checkpoints.committed(run) if checkpoints.find_damage(path)}


def attempt_killed(run: RunFolder, position: int, images_seen: int = 8, ranks: int = RANKS) -> bool:
    """Save in a process that kills itself at that step."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with Fault(position, lambda: os.kill(os.getpid(), signal.SIGKILL)).active():
                save(run, images_seen, ranks=ranks)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"step {position}: the process ended with {status}"
    return status != 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has no others
    for name in sys.argv[2:]:
        print(at_each_step(Path(sys.argv[1]), name, attempt_killed))
