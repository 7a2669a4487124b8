"""A run resumes from its newest whole checkpoint; damage is reported, and no kill loses anything."""

import errno
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.data.sets import collect
from hpc_recolor.run_folder import tensor_files
from hpc_recolor.run_folder.checkpoints import committed, find_damage, read_manifest
from hpc_recolor.run_folder.folder import RunFolder, claim, find_run
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import DIVERGED, STOPPED
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training.run_state import restore
from hpc_recolor.training.schedule import RunLength, is_due
from hpc_recolor.training.trainer import Trainer
from tests.support import training_runs
from tests.support.commands import environment
from tests.support.fork_server import ForkServer
from tests.support.training_runs import differences, make, state, train
from tests.training.test_resume import rows


def run_config(photos: Path, folder: Path, every_images: int = 8, keep: int = 10, **train: Any) -> Config:
    """By default a checkpoint after every second of 9 steps."""
    section = {"epochs": 3, "batch_size": 4, "lr_constant": 1.0, "device": "cpu", "threads": 1} | train
    return training_runs.run_config(
        photos, folder, train=section, checkpoint={"every_images": every_images, "keep": keep}
    )


def names(run: RunFolder) -> list[int]:
    return [int(path.name.removeprefix("images-")) for path in committed(run)]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_rows_after_the_checkpoint_are_rewound(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path), world)
    expected = rows(trainer.run)
    shutil.rmtree(committed(trainer.run)[-1])  # as if killed before the last commit
    with trainer.run.metrics.open("a") as file:
        file.write('{"kind": "train", "images_s')  # and in the middle of a row
    assert rows(train(run_config(photos, tmp_path), world).run) == expected


def test_a_damaged_checkpoint_is_named_and_the_one_before_gone_on_with(
    photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = state(train(run_config(photos, tmp_path / "whole"), world))
    trainer = train(run_config(photos, tmp_path / "damaged"), world)
    newest = committed(trainer.run)[-1]
    damage(newest / "shard-00000-of-00001.safetensors")
    again = train(run_config(photos, tmp_path / "damaged"), world)
    assert f"checkpoint {newest} is damaged and skipped: shard-00000-of-00001.safetensors" in capsys.readouterr().err
    assert differences(expected, state(again)) == []
    assert find_damage(newest) is None  # the run has passed it again
    assert names(again.run) == [8, 16, 24, 32, 36]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(
    photos: Path, tmp_path: Path, world: World
) -> None:
    trainer = train(run_config(photos, tmp_path), world)
    for path in committed(trainer.run):
        (path / "manifest.json").write_text("")
    before = trainer.run.metrics.read_text()
    with pytest.raises(UserError, match=r"all 5 checkpoints are damaged"):
        train(run_config(photos, tmp_path), world)
    assert trainer.run.metrics.read_text() == before


def test_a_run_whose_checkpoints_are_gone_does_not_start_afresh(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path), world)
    trainer.run.checkpoints.rename(tmp_path / "purged")
    before = trainer.run.metrics.read_text()
    with pytest.raises(UserError, match=r"lists checkpoints, but there are none"):
        train(run_config(photos, tmp_path), world)
    assert trainer.run.metrics.read_text() == before


def test_the_newest_and_the_snapshots_are_kept(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path, every_images=4, keep=2, snapshots=(1, 2)), world)
    assert names(trainer.run) == [12, 24, 32, 36]
    epochs = [read_manifest(path).snapshot_epoch for path in committed(trainer.run)]
    assert epochs == [1, 2, None, None]
    assert sorted(trainer.run.checkpoints.iterdir()) == committed(trainer.run)


@pytest.mark.slow
def test_snapshots_of_a_run_that_was_stopped_are_those_of_one_that_was_not(
    photos: Path, tmp_path: Path, world: World
) -> None:
    """Epochs 15, 30 and 45, with pruning; stopped in the middle of an epoch, just after a snapshot, just before one."""
    epochs, per_epoch = (15, 30, 45), 3

    def config(name: str) -> Config:
        return run_config(photos, tmp_path / name, every_images=24, keep=1, snapshots=epochs, epochs=45)

    whole = train(config("whole"), world)
    for step in (20, 15 * per_epoch, 30 * per_epoch - 2, None):
        parts = train(config("parts"), world, stop_at_step=step)
    for run in (whole.run, parts.run):
        assert names(run) == [12 * epoch for epoch in epochs]
        assert [read_manifest(path).snapshot_epoch for path in committed(run)] == list(epochs)
    for one, other in zip(committed(whole.run), committed(parts.run), strict=True):
        assert read_manifest(one).files == read_manifest(other).files


def test_a_checkpoint_says_where_it_comes_from(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path)
    manifest = read_manifest(committed(train(config, world).run)[-1])
    assert manifest.config == config.model_dump(mode="json")
    assert manifest.versions["torch"] == torch.__version__
    assert (manifest.world_size, manifest.zero_stage, manifest.images_seen) == (1, 0, 36)
    assert manifest.commit


def test_time_alone_makes_a_checkpoint_due(photos: Path, tmp_path: Path, world: World) -> None:
    config = training_runs.run_config(photos, tmp_path, checkpoint={"every_s": 1e-9, "every_images": 0, "keep": 20})
    trainer = train(config, world)
    saved = names(trainer.run)
    assert len(saved) > 2
    assert saved[-1] == 36


def test_without_either_only_the_end_makes_a_checkpoint_due() -> None:
    length = RunLength(total=36, per_epoch=12, per_step=4)
    assert [seen for seen in range(4, 37, 4) if is_due(0, seen, length)] == [36]
    assert [seen for seen in range(4, 37, 4) if is_due(10, seen, length)] == [12, 20, 32, 36]


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_holds_the_moment_it_was_begun_in(
    background: bool, photos: Path, tmp_path: Path, world: World
) -> None:
    section = {"every_s": 3600, "every_images": 4, "keep": 20, "background": background}
    config = training_runs.run_config(photos, tmp_path / "every", checkpoint=section)
    trainer = train(config, world)
    assert trainer.images_seen == 36
    for images in (4, 20):
        part = training_runs.run_config(photos, tmp_path / f"{background}-{images}")
        expected = state(train(part, world, stop_at_step=images // 4 - 1))
        run = RunFolder(tmp_path / f"from-{background}-{images}" / "train")
        claim(run, training_runs.run_config(photos, run.path.parent))
        shutil.copytree(trainer.run.checkpoints / f"images-{images:012d}", run.checkpoints / f"images-{images:012d}")
        restored = state(make(training_runs.run_config(photos, run.path.parent), world))
        assert [name for name in differences(expected, restored) if not name.endswith(".lr")] == []


def test_other_photographs_are_refused(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = train(run_config(photos, tmp_path), world)
    with pytest.raises(UserError, match="was trained on other photographs"):
        restore(trainer.run, trainer.state, lambda fingerprint: fingerprint == "another", world)


def test_other_networks_are_refused(photos: Path, tmp_path: Path, world: World) -> None:
    run = train(run_config(photos, tmp_path), world).run
    run.config.write_text(run.config.read_text().replace("width: 4", "width: 8"))
    wider = run_config(photos, tmp_path).model_dump()
    wider["model"]["width"] = 8
    with pytest.raises(UserError, match="does not fit the config"):
        train(load_config(None, wider), world)


def test_fewer_epochs_than_were_trained_are_refused_and_change_nothing(
    photos: Path, tmp_path: Path, world: World
) -> None:
    run = train(run_config(photos, tmp_path, epochs=2), world).run
    before = run.config.read_text()
    with pytest.raises(UserError, match=r"train.epochs=1: .* has already seen 24 images"):
        train(run_config(photos, tmp_path, epochs=1), world)
    assert run.config.read_text() == before


def test_what_a_killed_save_left_is_cleared_away(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path)
    run = find_run(config)
    claim(run, config)
    for remnant in (".writing-1", ".removing-images-000000000004"):
        (run.checkpoints / remnant).mkdir(parents=True)
        (run.checkpoints / remnant / "manifest.json").touch()
    train(config, world)
    assert sorted(run.checkpoints.iterdir()) == committed(run)


def test_a_kill_at_any_moment_leaves_a_run_that_goes_on(
    photos: Path, tmp_path: Path, world: World, fork_server: ForkServer
) -> None:
    """Killed twice while it saves at every step; then it must end as if it had never been killed."""
    config = run_config(photos, tmp_path / "killed", epochs=4, every_images=4)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(to_yaml(config))
    run = RunFolder(config.run.folder / config.run.name)
    for delay_s in (0.0, 0.05):
        before = len(committed(run))
        arguments = ("--config", config_file)
        with fork_server.start("hpc_recolor.train", arguments, tmp_path, environment()) as process:
            while len(committed(run)) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(delay_s)
            os.kill(process.pid, signal.SIGKILL)
        assert find_damage(committed(run)[-1]) is None
    resumed = state(train(config, world))
    whole = state(train(run_config(photos, tmp_path / "whole", epochs=4), world))
    assert differences(whole, resumed) == []


def test_a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = state(train(run_config(photos, tmp_path / "whole"), world))
    fail_once(monkeypatch, at_call=3)
    trainer = train(run_config(photos, tmp_path / "full"), world)
    assert "CHECKPOINT NOT WRITTEN" in capsys.readouterr().err
    assert names(trainer.run) == [8, 24, 32, 36]
    assert differences(expected, state(trainer)) == []


def test_a_run_that_cannot_save_its_end_says_so_and_keeps_what_it_has(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, at_call=9)
    with pytest.raises(UserError, match="the checkpoint after 36 images could not be written"):
        train(run_config(photos, tmp_path), world)
    monkeypatch.undo()
    assert names(find_run(run_config(photos, tmp_path))) == [8, 16, 24, 32]
    assert names(train(run_config(photos, tmp_path), world).run) == [8, 16, 24, 32, 36]


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_removed_by_the_next_save(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rmdir = os.rmdir

    def refuse_one(path: Any, **named: Any) -> None:
        if str(path).endswith(".removing-images-000000000032"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        rmdir(path, **named)

    monkeypatch.setattr(os, "rmdir", refuse_one)
    run = train(run_config(photos, tmp_path, keep=1), world).run
    told = "an old checkpoint could not be removed: .*images-000000000032: Device or resource busy"
    assert re.search(told, capsys.readouterr().err)
    assert names(run) == [36]
    monkeypatch.undo()
    train(run_config(photos, tmp_path, keep=1, epochs=4), world)
    assert [path.name for path in run.checkpoints.iterdir()] == ["images-000000000048"]


def test_a_disk_too_full_for_metrics_ends_the_run_with_one_line(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(run_config(photos, tmp_path), world)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hpc_recolor.training.tracking.tracker.RunTracker.log_step", full)
    with pytest.raises(RankError, match=r"cannot write .*/train \(No space left on device\); make room"):
        trainer.run_loop()


def fail_once(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """One write of a file finds no space left; every checkpoint has two files."""
    calls, original = iter(range(1, 1000)), tensor_files.write

    def failing(*arguments: Any) -> Any:
        if next(calls) == at_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        return original(*arguments)

    monkeypatch.setattr("hpc_recolor.training.background_writer.write", failing)


class Poisoned(Trainer):
    """A run in which the images of some steps are NaN."""

    bad_steps: tuple[int, ...] = ()

    def run_step(self, batch: Any) -> Any:
        step = self.images_seen // self.length.per_step
        with pytest.MonkeyPatch.context() as patch:
            if step in self.bad_steps:
                patch.setattr("hpc_recolor.training.device_step.make_pair", self.nan_images)
            return super().run_step(batch)

    @staticmethod
    def nan_images(rgb: torch.Tensor, color: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        shape = len(rgb), *rgb.shape[1:3]
        return torch.full((shape[0], 1, *shape[1:]), torch.nan), torch.zeros(shape[0], 2, *shape[1:])


def poisoned(config: Config, world: World, *bad_steps: int) -> Poisoned:
    run = find_run(config)
    trainer = Poisoned(config, world, collect(config, world), run, StopRequest())
    trainer.bad_steps = bad_steps
    return trainer


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(photos: Path, tmp_path: Path, world: World) -> None:
    trainer = poisoned(run_config(photos, tmp_path), world, 4)
    before: list[dict[str, torch.Tensor]] = []
    run_step = trainer.run_step

    def noted(batch: Any) -> Any:
        before.append({name: value.clone() for name, value in state(trainer).items()})
        return run_step(batch)

    trainer.run_step = noted  # type: ignore[method-assign]
    trainer.run_loop()
    assert set(differences(before[4], before[5])) <= {"random"}
    assert trainer.state.counters.bad_steps == 1
    assert trainer.state.counters.bad_in_a_row == 0
    assert all(torch.isfinite(value).all() for value in state(trainer).values())


def test_too_many_bad_steps_in_a_row_end_the_run_with_its_last_good_checkpoint(
    photos: Path, tmp_path: Path, world: World
) -> None:
    trainer = poisoned(run_config(photos, tmp_path, max_bad_steps=3), world, 4, 5, 6)
    with pytest.raises(EarlyEndError, match=r"train\.max_bad_steps=3") as end:
        trainer.run_loop()
    assert end.value.exit_code == DIVERGED
    assert names(trainer.run)[-1] == 24  # saved in between, with the weights of step 4
    assert find_damage(committed(trainer.run)[-1]) is None


def test_a_run_that_is_stopped_says_how_and_where_it_stands(photos: Path, tmp_path: Path, world: World) -> None:
    config = training_runs.run_config(photos, tmp_path, tracking={"log_every_steps": 1000})
    trainer = make(
        config, world, stop_at_step=4, at_once=False
    )  # which ends at 20 images, and its verdict is read two steps later
    with pytest.raises(EarlyEndError, match=r"stopped by SIGTERM after 28 images") as end:
        trainer.run_loop()
    assert end.value.exit_code == STOPPED
    assert names(trainer.run)[-1] == 28


def test_a_measurement_that_was_cut_short_is_made_when_the_run_goes_on(
    photos: Path, tmp_path: Path, world: World
) -> None:
    tracking = {"samples_every_images": 12, "tensorboard": False}
    whole = train(training_runs.run_config(photos, tmp_path / "whole", tracking=tracking), world)
    config = training_runs.run_config(photos, tmp_path / "parts", tracking=tracking)
    trainer = make(config, world, stop_at_step=3, in_phase="measuring")
    with pytest.raises(EarlyEndError, match="after 12 images"):
        trainer.run_loop()
    assert rows(train(config, world).run) == rows(whole.run)
