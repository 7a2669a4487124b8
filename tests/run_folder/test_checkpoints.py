"""Checkpoints on disk: whole or not there, whatever happens while they are written; damage is named, never loaded."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hpc_recolor.run_folder import checkpoint_writer, checkpoints
from hpc_recolor.run_folder.checkpoints import Manifest, committed, find_damage, newest_intact, read_manifest
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.tensor_files import Fragments, write
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT
from tests.support.saves import SITUATIONS, Fault, at_each_step, damage, make_manifest, save, saved_value

SHARD = "shard-00001-of-00002.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a folder: hundreds of saves sync thousands of files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def names(run: RunFolder) -> list[str]:
    return sorted(path.name.replace("images-0000000000", "") for path in run.checkpoints.iterdir())


def test_a_save_is_one_folder_with_all_that_its_manifest_names(run: RunFolder) -> None:
    path = save(run, 8, snapshot_epoch=15)
    assert path == run.checkpoints / "images-000000000008"
    manifest = read_manifest(path)
    assert manifest == make_manifest(8, snapshot_epoch=15, files=manifest.files)
    assert {file.name for file in path.iterdir()} == {"manifest.json", "manifest.json.xxh3", *manifest.files}
    assert all(record_of(path / name) == record for name, record in manifest.files.items())
    assert find_damage(path) is None
    assert newest_intact(run) == (path, [])
    assert saved_value(path) == 8


def test_a_run_without_checkpoints_says_so(run: RunFolder) -> None:
    assert committed(run) == []
    with pytest.raises(UserError, match="has no checkpoint yet; train first"):
        newest_intact(run)


# --- A fault at each step of a save


class KilledError(BaseException):
    """The end of a process, for all that this process may do about it."""


@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_end_at_any_step_of_a_save_leaves_a_whole_checkpoint(quick_folder: Path, situation: str) -> None:
    def attempt(run: RunFolder, position: int) -> bool:
        def end() -> None:
            raise KilledError

        fault = Fault(position, end)
        try:
            with fault.active():
                save(run, 8)
        except KilledError:
            return True
        assert not fault.met
        return False

    assert at_each_step(quick_folder, situation, attempt) > 60


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_an_error_at_any_step_of_a_save_is_told_and_leaves_a_whole_checkpoint(quick_folder: Path, code: int) -> None:
    told, untold = set(), set()

    def attempt(run: RunFolder, position: int) -> bool:
        def fail() -> None:
            raise OSError(code, os.strerror(code))

        fault = Fault(position, fail)
        try:
            with fault.active():
                save(run, 8)
        except OSError as error:
            told.add(error.errno)
        else:
            untold.add(fault.met)
        return bool(fault.met)

    assert at_each_step(quick_folder, "plain", attempt) > 60
    assert (told, untold) == ({code}, {""})


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_save_leaves_a_whole_checkpoint(quick_folder: Path) -> None:
    """SIGKILL, in a process that forks another one for each step."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.saves", str(quick_folder), "plain", "passing a damaged one"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    assert len(steps) == 2 and min(steps) > 60


def test_all_is_on_disk_before_the_rename_and_the_name_before_the_old_one_goes(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would need; no kill can show it."""
    save(run, 4)
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        real_fsync(handle)
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        steps.append(f"sync {checkpoint_writer.WRITING if name.startswith(checkpoint_writer.WRITING) else name}")

    def rename(source: Any, target: Any) -> None:
        real_rename(source, target)
        steps.append(f"rename {Path(target).name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(run, 8)
    committed_at = steps.index("rename images-000000000008")
    before, after = steps[:committed_at], steps[committed_at + 1 :]
    assert {f"sync {name}" for name in checkpoints.expected_files(2)} | {f"sync {checkpoint_writer.WRITING}"} <= set(
        before
    )
    manifest = next(step for step in before if step.startswith("sync .manifest.json."))
    assert before.index(manifest) < before.index(f"sync {checkpoint_writer.WRITING}")
    assert after == ["sync checkpoints", "rename .removing-images-000000000004", "sync checkpoints"]


def test_a_failed_write_names_its_file_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fault = Fault(4, fail)
    with pytest.raises(OSError, match="No space") as failure, fault.active():
        write(tmp_path / "file", {"w": torch.ones(3)})
    assert failure.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    folder = tmp_path / "device"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_or_read_only_device_keeps_the_old_checkpoint_until_there_is_room(device: Path) -> None:
    run = RunFolder(device)
    old = save(run, 4)
    filler = device / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2**20))
    with pytest.raises(OSError, match="No space"):
        save(run, 8)
    assert newest_intact(run) == (old, [])

    subprocess.run(["mount", "-o", "remount,ro", device], check=True)
    with pytest.raises(OSError, match="Read-only") as failure:
        save(run, 8)
    assert str(device) in str(failure.value.filename)
    assert newest_intact(run) == (old, [])

    subprocess.run(["mount", "-o", "remount,rw", device], check=True)
    filler.unlink()
    save(run, 8)
    assert names(run) == ["08"]


def test_leftovers_that_cannot_be_removed_are_named_and_fail_no_save(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where NFS keeps a file that another process has open, or a folder is another user's."""
    save(run, 4)
    leftovers = [run.checkpoints / name for name in (".removing-images-000000000004", ".writing-1")]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / ".nfs0001").touch()
    remove = os.unlink

    def refuse(path: Any, **named: Any) -> None:
        if str(path).endswith(".nfs0001"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        remove(path, **named)

    monkeypatch.setattr(os, "unlink", refuse)
    save(run, 8)
    lines = capsys.readouterr().err.splitlines()
    for leftover in leftovers:
        assert f"{leftover} could not be removed (Device or resource busy); it is not needed" in "\n".join(lines)
    assert len(lines) == 2
    assert [path.name for path in committed(run)] == ["images-000000000008"]
    monkeypatch.undo()
    save(run, 12)
    assert [path.name for path in run.checkpoints.iterdir()] == ["images-000000000012"]


def test_files_that_are_not_as_long_as_written_are_not_committed(run: RunFolder) -> None:
    old = save(run, 4)
    beside = checkpoint_writer.begin(run)
    files = {name: write(beside / name, {"w": torch.ones(3)}) for name in checkpoints.expected_files(2)}
    os.truncate(beside / SHARD, 50)
    with pytest.raises(OSError, match="another size than was written"):
        checkpoint_writer.commit(run, beside, make_manifest(8, files=files))
    assert newest_intact(run) == (old, [])
    assert names(run) == ["04"]


def test_a_whole_checkpoint_of_the_same_place_is_kept_and_a_damaged_one_replaced(run: RunFolder) -> None:
    inode = save(run, 8).stat().st_ino
    assert save(run, 8).stat().st_ino == inode
    damage(run.checkpoints / "images-000000000008")
    assert save(run, 8).stat().st_ino != inode
    assert names(run) == ["08"]
    assert newest_intact(run)[1] == []


# --- Damage


def cut_off(path: Path) -> None:
    os.truncate(path / SHARD, 20)


def lose(path: Path) -> None:
    (path / SHARD).unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def write_manifest(path: Path, **changes: Any) -> None:
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | changes))
    (path / "manifest.json.xxh3").write_bytes(checkpoints.manifest_hash((path / "manifest.json").read_bytes()))


def alter_manifest(path: Path) -> None:
    """Change one digit of what would be resumed with."""
    file = path / "manifest.json"
    before = file.read_text()
    file.write_text(before.replace('"generator.steps": 3', '"generator.steps": 2'))
    assert file.read_text() != before


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lose, f"{SHARD} is missing"),
        (cut_off, f"{SHARD} has 20 bytes"),
        (damage, f"{SHARD} differs from what was written"),
        (lose_manifest, "manifest.json is missing"),
        (alter_manifest, "manifest.json differs from what was written"),
        (lambda path: (path / "manifest.json").write_bytes(b""), "manifest.json is not JSON"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\x00" * 50), "manifest.json is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json is not a manifest"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is not a manifest"),
        (lambda path: write_manifest(path, format=1), "format 1, .* written by another version"),
        (lambda path: write_manifest(path, format=3, more="unknown"), "format 3, .* written by another version"),
        (lambda path: write_manifest(path, world_size=3), "files must not name .*-of-00002"),
        (lambda path: write_manifest(path, images_seen=9), "manifest.json belongs to images-000000000009"),
        (lambda path: write_manifest(path, progress={"x": float("nan")}), "manifest.json is not a manifest"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_taken(run: RunFolder, harm: Any, named: str) -> None:
    old, new = save(run, 4), save(run, 8, keep=2)
    harm(new)
    found, skipped = newest_intact(run)
    assert found == old
    (line,) = skipped
    assert str(new) in line
    damage(old)
    with pytest.raises(UserError, match=f"all 2 checkpoints are damaged: .*{named}"):
        newest_intact(run)


def test_a_checkpoint_of_an_earlier_version_has_no_hash_of_its_manifest_and_is_whole(run: RunFolder) -> None:
    path = save(run, 4)
    (path / "manifest.json.xxh3").unlink()
    assert newest_intact(run) == (path, [])


def test_only_the_files_that_are_asked_for_are_read(run: RunFolder) -> None:
    path = save(run, 4)
    damage(path)
    assert find_damage(path, []) is None
    assert find_damage(path, ["rank-00000-of-00002.safetensors"]) is None
    assert "XXH3-128" in str(find_damage(path, [SHARD]))
    assert "does not list" in str(find_damage(path, ["../manifest.json"]))
    with pytest.raises(UserError, match=r"is damaged: manifest\.json is missing"):
        read_manifest(path.parent)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "x.pt",
        "/etc/passwd",
        "",
        "shard-00000-of-00003.safetensors",
        "sub/shard-00000-of-00001.safetensors",
    ],
)
def test_a_manifest_that_names_other_files_is_refused(name: str) -> None:
    whole = make_manifest(8, world_size=1).model_dump()
    for files in (whole["files"] | {name: {"size_bytes": 1, "sha256": ""}}, {name: {"size_bytes": 1, "sha256": ""}}):
        with pytest.raises(ValidationError, match="must"):
            Manifest.model_validate(whole | {"files": files})


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def test_a_shard_that_would_run_code_is_refused_and_does_not(run: RunFolder, tmp_path: Path) -> None:
    path, mark = save(run, 8), tmp_path / "ran"
    torch.save({"w": Bomb(mark)}, path / SHARD)
    torch.load(BytesIO((path / SHARD).read_bytes()), weights_only=False)["w"].close()  # noqa: TID251
    assert mark.exists()  # it is armed
    mark.unlink()
    files = {name: record.model_dump() for name, record in read_manifest(path).files.items()}
    write_manifest(path, files=files | {SHARD: record_of(path / SHARD).model_dump()})
    assert find_damage(path, [SHARD]) is not None
    with pytest.raises(UserError, match=f"{SHARD} is not a safetensors file"):
        newest_intact(run)
    with pytest.raises(UserError, match=rf"{SHARD}: not a safetensors file"):
        checkpoints.evaluation_weights(path, read_manifest(path))
    with pytest.raises(UserError, match=rf"{SHARD}: not a safetensors file"):
        Fragments([path / SHARD])
    assert not mark.exists()


# --- Pruning


def test_the_newest_and_all_milestones_are_kept(run: RunFolder) -> None:
    for images in (1, 2, 3, 4, 5, 6):
        save(run, images, keep=2, snapshot_epoch={2: 15, 5: 30}.get(images))
    assert names(run) == ["02", "05", "06"]
    save(run, 7, keep=1)
    assert names(run) == ["02", "05", "07"]


def test_damaged_checkpoints_that_training_has_not_passed_again_are_left_alone(run: RunFolder) -> None:
    for images in (4, 8, 12):
        save(run, images, keep=9)
    lose_manifest(run.checkpoints / "images-000000000012")
    checkpoint_writer.remove(checkpoint_writer.prune(run, 1, run.checkpoints / "images-000000000008"))
    assert names(run) == ["08", "12"]
    save(run, 16, keep=1)
    assert names(run) == ["16"]


def test_a_milestone_whose_manifest_cannot_be_read_now_is_not_removed(run: RunFolder) -> None:
    path = save(run, 4, snapshot_epoch=15)
    (path / "manifest.json").rename(path / "kept")
    (path / "manifest.json").mkdir()  # reading it is an error, but not that it is missing
    save(run, 8, keep=1)
    assert names(run) == ["04", "08"]
    (path / "manifest.json").rmdir()
    (path / "kept").rename(path / "manifest.json")
    assert find_damage(path) is None


def test_other_files_in_the_folder_are_no_checkpoints_and_are_left_alone(run: RunFolder) -> None:
    save(run, 4)
    (run.checkpoints / "notes.txt").touch()
    (run.checkpoints / "images-000000000001").touch()
    (run.checkpoints / "images-1").mkdir()
    (run.checkpoints / "images-000000000099-copy").mkdir()
    path = save(run, 8, keep=1)
    assert committed(run) == [path]
    assert names(run) == ["01", "08", "99-copy", "images-1", "notes.txt"]


# --- The generator for use


def test_the_moving_average_and_averaged_buffers_are_taken_where_there_are_any(run: RunFolder) -> None:
    path = save_with_average(run)
    weights = checkpoints.evaluation_weights(path, read_manifest(path))
    assert {name: value.tolist() for name, value in weights.items()} == {"w": [[2.0] * 3] * 2, "norm.count": 3}


def test_both_networks_can_be_had_as_the_last_step_left_them(run: RunFolder) -> None:
    path = save_with_average(run)
    generator = checkpoints.trained_weights(path, read_manifest(path), "generator")
    assert {name: value.tolist() for name, value in generator.items()} == {"w": [[1.0] * 3] * 2, "norm.count": 3}
    discriminator = checkpoints.trained_weights(path, read_manifest(path), "discriminator")
    assert {name: value.tolist() for name, value in discriminator.items()} == {"w": [5.0] * 6, "norm.count": 4}


def save_with_average(run: RunFolder) -> Path:
    """A checkpoint of one rank: generator 1, its average 2, discriminator 5, and a buffer of each."""
    beside = checkpoint_writer.begin(run)
    tensors = {f"generator/{kind}/w@0": torch.full((6,), value) for kind, value in (("weight", 1.0), ("ema", 2.0))}
    tensors["discriminator/weight/w@0"] = torch.full((6,), 5.0)
    tensors["generator/averaged/norm.count"] = torch.tensor(3)
    tensors["discriminator/averaged/norm.count"] = torch.tensor(4)
    contents = {checkpoints.shard_file(0, 1): tensors, checkpoints.rank_file(0, 1): {"random": torch.zeros(1)}}
    files = {name: write(beside / name, content) for name, content in contents.items()}
    return checkpoint_writer.commit(run, beside, make_manifest(8, world_size=1, files=files))
