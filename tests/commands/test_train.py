"""Training by command: what a run writes, how it goes on, and what it refuses to mix."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, Command, CommandIn, changed, contents, error_line, paint_photo
from tests.support.commands import DEADLINE_S, Done, environment

# Checkpoints after 8 and 12 photographs.
FLAGS = (*TINY, "--checkpoint.every_images", "4")


@pytest.fixture(scope="module")
def mixed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 15 photographs with two files among them that cannot be read."""
    folder = Path(shutil.copytree(photos, tmp_path_factory.mktemp("mixed") / "photos"))
    whole = sorted(folder.glob("*.jpg"))[0].read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "nested" / "text.png").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def first(mixed: Path, tmp_path_factory: pytest.TempPathFactory, command_in: CommandIn) -> tuple[Path, Done]:
    """One epoch over the 12 photographs that are not set aside: the run folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("finished")
    result = command_in(folder)("train", "--data.photos", mixed, *FLAGS, fresh=True)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "train", result


@pytest.fixture
def run(first: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the finished run, where `command` looks for it."""
    return Path(shutil.copytree(first[0], tmp_path / "runs" / "train"))


def rows(run: Path, kind: str) -> list[dict[str, float]]:
    """The rows of one kind in a run's metrics."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in every if row["kind"] == kind]


def test_printed_config_holds_file_and_flags_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train:\n  epochs: 7\n  lr: 0.001\n")
    before = contents(tmp_path)
    flags = ["--train.lr", "0.01", "--train.betas", "0.9", "0.99"]
    result = command("train", "--config", "mine.yaml", *flags, "--print-config")
    config = yaml.safe_load(result.stdout)
    assert (config["train"]["epochs"], config["train"]["lr"], config["train"]["betas"]) == (7, 0.01, [0.9, 0.99])
    assert result.returncode == 0 and result.stderr == ""
    assert contents(tmp_path) == before


def test_printed_config_is_a_config_file(command: Command, tmp_path: Path, photos: Path) -> None:
    first = command("train", "--data.photos", photos, *TINY, "--print-config").stdout
    (tmp_path / "printed.yaml").write_text(first)
    assert command("train", "--config", "printed.yaml", "--print-config").stdout == first


def test_run_folder_holds_config_metrics_pictures_and_checkpoints(run: Path, mixed: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["photos"] == str(mixed)
    assert [row["images_seen"] for row in rows(run, "train")] == [4, 8, 12]
    assert all({"generator", "discriminator", "l1", "adversarial"} <= row.keys() for row in rows(run, "train"))
    assert [row["images_seen"] for row in rows(run, "held_out")] == [12]
    assert (run / "losses.png").stat().st_size > 0
    assert list(run.glob("samples/*.png"))
    assert list(run.glob("logs/*"))
    manifest = json.loads(sorted(run.glob("checkpoints/images-*/manifest.json"))[-1].read_text())
    assert manifest["images_seen"] == 12


def test_same_command_after_the_end_says_finished_and_trains_no_more(command: Command, run: Path, mixed: Path) -> None:
    before = contents(run / "checkpoints"), rows(run, "train")
    result = command("train", "--data.photos", mixed, *FLAGS)
    assert result.returncode == 0, result.stderr
    assert "is finished" in result.stdout
    assert (contents(run / "checkpoints"), rows(run, "train")) == before


def test_same_command_after_an_interruption_goes_on_from_the_newest_checkpoint(
    command: Command, run: Path, mixed: Path
) -> None:
    newest = sorted(run.glob("checkpoints/images-*"))[-1]
    before = rows(run, "train")
    shutil.rmtree(newest)
    result = command("train", "--data.photos", mixed, *FLAGS)
    assert result.returncode == 0, result.stderr
    after = rows(run, "train")
    assert after[:2] == before[:2]
    assert after[2]["generator"] == pytest.approx(before[2]["generator"], rel=1e-4)
    assert [row["images_seen"] for row in after] == [4, 8, 12]
    assert (newest / "manifest.json").is_file()


def test_more_epochs_go_on_from_the_newest_checkpoint(command: Command, run: Path, mixed: Path) -> None:
    before = rows(run, "train")
    result = command("train", "--data.photos", mixed, *changed(FLAGS, **{"train.epochs": 2}))
    assert result.returncode == 0, result.stderr
    after = rows(run, "train")
    assert after[:3] == before
    assert [row["images_seen"] for row in after] == [4, 8, 12, 16, 20, 24]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == 2


def test_other_settings_are_refused_by_name_and_change_nothing(command: Command, run: Path, mixed: Path) -> None:
    before = contents(run)
    flags = changed(FLAGS, **{"model.norm": "instance", "train.lr": 0.1})
    result = command("train", "--data.photos", mixed, *flags)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "model.norm" in line and "train.lr" in line
    assert "train.batch_size" not in line and "data.size" not in line
    assert contents(run) == before


def test_unreadable_photographs_are_left_out_and_named(first: tuple[Path, Done]) -> None:
    run, result = first
    assert "left out 2 photographs" in result.stderr
    assert "truncated.jpg" in result.stderr and "text.png" in result.stderr
    assert rows(run, "train")[-1]["images_seen"] == 12


def test_finished_run_colors_photographs(command: Command, tmp_path: Path, run: Path) -> None:
    paint_photo(20).save(tmp_path / "unseen.jpg")
    result = command("colorize", "unseen.jpg", "--run", run, "--out", "colored")
    assert result.returncode == 0, result.stderr
    assert sorted(contents(tmp_path / "colored")) == ["unseen.png"]


def test_two_ranks_train_one_run_that_one_rank_goes_on_with(command: Command, photos: Path, tmp_path: Path) -> None:
    flags = (*TINY, "--data.photos", str(photos), "--model.norm", "sync_batch", "--deepspeed.zero_stage", "2")
    together = command("train", *flags, ranks=2, fresh=True)
    assert together.returncode == 0, together.stderr
    manifest = json.loads(next((tmp_path / "runs").glob("train/checkpoints/*/manifest.json")).read_text())
    assert manifest["world_size"] == 2
    assert sorted(manifest["files"]) == [
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
    ]
    alone = command("train", *changed(flags, **{"train.epochs": 2}))
    assert alone.returncode == 0, alone.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/train/metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows if row["kind"] == "train"] == [4, 8, 12, 16, 20, 24]


def test_run_from_shards_goes_on_after_they_were_moved(command: Command, photos: Path, tmp_path: Path) -> None:
    prepared = command("prepare", photos, "--out", "set", "--size", 32, "--val", 3)
    assert prepared.returncode == 0, prepared.stderr
    whole = command("train", "--data.shards", "set", *changed(FLAGS, **{"run.name": "whole", "train.epochs": 2}))
    assert whole.returncode == 0, whole.stderr
    assert command("train", "--data.shards", "set", *FLAGS).returncode == 0
    shutil.move(tmp_path / "set", tmp_path / "moved")
    flags = changed(FLAGS, **{"train.epochs": 2, "data.cache": "host"})
    more = command("train", "--data.shards", "moved", *flags)
    assert more.returncode == 0, more.stderr
    assert "from image 12 to 24" in more.stdout
    runs = tmp_path / "runs"
    losses = [[row["l1"] for row in rows(runs / name, "train")][:3] for name in ("train", "whole")]
    assert losses[0] == losses[1]
    assert (runs / "train" / "checkpoints").is_dir()
    other = command("prepare", photos, "--out", "other", "--size", 32, "--val", 3, "--seed", 1)
    assert other.returncode == 0, other.stderr
    assert "other photographs" in error_line(command("train", "--data.shards", "other", *flags))


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs to be root")
@pytest.mark.parametrize("threads", [1, 16])
def test_little_shared_memory_is_enough_for_the_torch_loader_or_named(
    photos: Path, tmp_path: Path, threads: int
) -> None:
    flags = changed(TINY, **{"data.loader": "torch", "data.threads": threads, "data.size": 128})
    command = [sys.executable, "-m", "hpc_recolor.train", "--data.photos", str(photos), *flags]
    script = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && cd {tmp_path} && exec {shlex.join(command)}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], env=environment(), capture_output=True, text=True, timeout=DEADLINE_S
    )
    if threads == 1:
        assert done.returncode == 0 and "/dev/shm is too small" in done.stderr, done.stderr
        return
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: data.threads=16: its workers cannot be started" in done.stderr.splitlines()[-1]
