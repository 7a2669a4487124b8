"""Checkpoints: resumed is the same run, half-written is no checkpoint, damage is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpc_recolor.config import Config, load_config, to_yaml
from hpc_recolor.data.sets import collect
from hpc_recolor.distributed import World
from hpc_recolor.errors import UserError
from hpc_recolor.run_folder import RunFolder, checkpoints, claim, find, newest_checkpoint, verify
from hpc_recolor.training import checkpoint
from hpc_recolor.training.trainer import Trainer
from tests.conftest import ROOT


def run_config(photos: Path, folder: Path, epochs: int, keep: int = 10, every_images: int = 8) -> Config:
    """Steps of 4 on 12 photographs with dropout, by default a checkpoint after every second step."""
    return load_config(
        None,
        {
            "run": {"folder": folder},
            "data": {"photos": photos, "held_out_count": 3, "size": 32},
            "model": {"width": 4},
            "train": {"epochs": epochs, "batch_size": 4, "lr_constant": 1.0, "device": "cpu", "threads": 1},
            "checkpoint": {"every_images": every_images, "keep": keep},
            "tracking": {"log_every_steps": 3, "samples_every_images": 12, "tensorboard": False},
        },
    )


def train(config: Config, world: World) -> Trainer:
    trainer = Trainer(config, world, collect(config, world), find(config))
    trainer.run_loop()
    return trainer


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that training changes, by name."""
    tensors = {"random": torch.get_rng_state()}
    for name, engine in zip("GD", trainer.engines, strict=True):
        tensors |= {f"{name}.{key}": value for key, value in engine.module.state_dict().items()}
        for number, moments in engine.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.adam.{number}.{key}": value for key, value in moments.items()}
    return tensors


def read_losses(run: RunFolder) -> list[list[float]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [[row["images_seen"], row["discriminator"], row["generator"]] for row in rows if row["kind"] == "train"]


def test_a_resumed_run_is_the_same_run(photos: Path, tmp_path: Path, world: World) -> None:
    whole = train(run_config(photos, tmp_path / "whole", epochs=3), world)
    whole_state = {name: value.clone() for name, value in state(whole).items()}
    train(run_config(photos, tmp_path / "parts", epochs=1), world)
    torch.manual_seed(123)  # what another process would start with
    parts = train(run_config(photos, tmp_path / "parts", epochs=3), world)
    for name, value in state(parts).items():
        assert torch.equal(value, whole_state[name]), name
    assert read_losses(parts.run) == read_losses(whole.run)


def test_rows_after_the_checkpoint_are_rewound(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path, epochs=1), world)
    expected = read_losses(trainer.run)
    newest = checkpoints(trainer.run)[-1]
    (newest / "manifest.json").unlink()  # as if killed before the last commit
    with trainer.run.metrics.open("a") as file:
        file.write('{"kind": "train", "images_s')  # and in the middle of a row
    assert read_losses(train(run_config(photos, tmp_path, epochs=1), world).run) == expected


def test_savings_and_prunings_that_were_killed_are_cleared_away(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path, epochs=1)
    run = find(config)
    claim(run, config)
    for remnant in (".writing", "images-000000000004"):
        (run.checkpoints / remnant).mkdir(parents=True)
    (run.checkpoints / ".writing" / "manifest.json").touch()
    train(config, world)
    assert [path.name for path in run.checkpoints.iterdir() if path not in checkpoints(run)] == []


def test_the_newest_are_kept(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path, epochs=2, keep=2), world)
    assert [path.name for path in checkpoints(trainer.run)] == ["images-000000000016", "images-000000000024"]
    assert len(list(trainer.run.checkpoints.iterdir())) == 2


def test_every_damaged_file_is_named(photos: Path, tmp_path: Path, world: World) -> None:
    run = train(run_config(photos, tmp_path, epochs=1), world).run
    path = newest_checkpoint(run)
    names = sorted(file.name for file in path.iterdir() if file.name != "manifest.json")
    assert names == ["generator.safetensors", "rank_00000.pt", "training_state.pt"]
    for name in names:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"is damaged: {name}"):
            verify(path)
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
    verify(path)


def test_other_photographs_are_refused(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path, epochs=1)
    trainer = train(config, world)
    with pytest.raises(UserError, match="was trained on other photographs"):
        checkpoint.restore(trainer.run, trainer.engines, "another fingerprint", world)


def test_other_networks_are_refused(photos: Path, tmp_path: Path, world: World) -> None:
    run = train(run_config(photos, tmp_path, epochs=1), world).run
    run.config.write_text(run.config.read_text().replace("width: 4", "width: 8"))
    wider = run_config(photos, tmp_path, epochs=1).model_dump()
    wider["model"]["width"] = 8
    with pytest.raises(UserError, match="does not fit the config"):
        train(load_config(None, wider), world)


def test_a_kill_at_any_moment_leaves_a_run_that_goes_on(photos: Path, tmp_path: Path, world: World) -> None:
    """Killed twice while it saves at every step; then it must end as if it had never been killed."""
    config = run_config(photos, tmp_path / "killed", epochs=4, every_images=4)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "hpc_recolor.train", "--config", str(config_file)]
    run = RunFolder(config.run.folder / config.run.name)
    for delay_s in (0.0, 0.05):
        before = len(checkpoints(run))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(checkpoints(run)) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        verify(newest_checkpoint(run).resolve())
    resumed = state(train(config, world))
    resumed = {name: value.clone() for name, value in resumed.items()}
    for name, value in state(train(run_config(photos, tmp_path / "whole", epochs=4), world)).items():
        assert torch.equal(value, resumed[name]), name


def test_fewer_epochs_than_were_trained_are_refused_and_change_nothing(
    photos: Path, tmp_path: Path, world: World
) -> None:
    run = train(run_config(photos, tmp_path, epochs=2), world).run
    before = run.config.read_text()
    with pytest.raises(UserError, match=r"train.epochs=1: .* has already seen 24 images"):
        train(run_config(photos, tmp_path, epochs=1), world)
    assert run.config.read_text() == before
