"""What a run records while it trains, and that a resumed run records it in one piece."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpc_recolor.config_file import to_yaml
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.schedule import RunLength
from hpc_recolor.training.tracking.boards import TensorBoard, hyperparameters
from hpc_recolor.training.tracking.tracker import RunTracker
from tests.conftest import TINY, Command, error_line
from tests.support.training_runs import run_config, train

pytestmark = pytest.mark.slow

LOSSES = ("discriminator", "generator", "l1", "adversarial")
HPARAMS_EXPERIMENT, HPARAMS_START = "_hparams_/experiment", "_hparams_/session_start_info"
SPEEDS = ("images_per_s", "rank_tflop_per_s")


def rows(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.metrics) if row["kind"] == kind]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B without a network, and with all of its files in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_rows_hold_losses_rates_and_gradient_norms(photos: Path, tmp_path: Path, world: World) -> None:
    run = train(run_config(photos, tmp_path, tracking={"samples_every_images": 12}), world).run
    logged = rows(run, "train")
    assert [row["images_seen"] for row in logged] == [12, 24, 36]
    for row in logged:
        assert all(row[name] > 0 for name in (*LOSSES, *SPEEDS, "generator_gradient", "discriminator_gradient"))
    for row in rows(run, "held_out"):
        assert all(row[name] > 0 for name in ("l1", "adversarial", "discriminator", "ciede2000"))


def test_every_start_is_noted_with_machine_and_code(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Path, Path]] = []
    monkeypatch.setattr("hpc_recolor.training.tracking.tracker.plot_losses", lambda *files: drawn.append(files))
    config = run_config(photos, tmp_path)
    stopped = train(config, world, stop_at_step=4).run
    assert "Stopped after image 20 of 36" in (stopped.path / "README.md").read_text()
    assert drawn == [(stopped.metrics, stopped.losses)], "at a stop too, though nothing was measured yet"
    run = train(config, world).run
    assert "Finished after image 36 of 36" in (run.path / "README.md").read_text()
    starts = rows(run, "start")
    assert [row["images_seen"] for row in starts] == [0, 20]
    for row in starts:
        assert (row["world_size"], row["device"]) == (1, "cpu")
        assert "threads of" in row["hardware"]
        assert set(row["versions"]) == {"torch", "deepspeed", "hpc_recolor"}


def test_a_stop_draws_samples_as_they_are_then_and_logs_no_scores(photos: Path, tmp_path: Path, world: World) -> None:
    stopped = train(run_config(photos, tmp_path / "stopped"), world, stop_at_step=4).run
    whole = train(run_config(photos, tmp_path / "whole", tracking={"samples_every_images": 20}), world).run
    (drawn,) = stopped.samples.iterdir()
    assert drawn.name == "images-000000000020.png"
    assert drawn.read_bytes() == (whole.samples / drawn.name).read_bytes()
    assert rows(stopped, "held_out") == []


def test_a_stop_whose_save_takes_long_draws_no_samples(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_recolor.training.trainer.LONGEST_SAVE_WITH_SAMPLES_S", 0.0)
    assert not train(run_config(photos, tmp_path), world, stop_at_step=4).run.samples.exists()


@pytest.mark.parametrize("figure", ["plot_losses", "sample_grid"])
def test_a_figure_that_cannot_be_drawn_leaves_a_stop_a_stop(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    """Or a job that was preempted would end as failed, and not be requeued."""

    def fail(*_: object) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr(f"hpc_recolor.training.tracking.tracker.{figure}", fail)
    stopped = train(run_config(photos, tmp_path), world, stop_at_step=4).run
    assert "Stopped after image 20 of 36" in (stopped.path / "README.md").read_text()


def test_tensorboard_shows_numbers_and_samples_once_though_the_run_was_stopped(
    photos: Path, tmp_path: Path, world: World
) -> None:
    config = run_config(photos, tmp_path, tracking={"tensorboard": True, "samples_every_images": 12})
    train(config, world, stop_at_step=4)
    run = train(config, world).run
    events = EventAccumulator(str(run.logs)).Reload()
    scalars = {"lr", *SPEEDS, "generator_gradient", "discriminator_gradient", *LOSSES}
    for tag in (f"train/{name}" for name in scalars):
        assert [event.step for event in events.Scalars(tag)] == [12, 24, 36], tag
    for tag in ("samples", "photographs/0", "photographs/2"):
        assert [event.step for event in events.Images(tag)] == [12, 24, 36], tag
    picture = Image.open(BytesIO(events.Images("photographs/0")[0].encoded_image_string))
    assert picture.size == (3 * 32, 32)


def test_tensorboard_knows_the_config_and_its_hyperparameters(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path, tracking={"tensorboard": True})
    board = TensorBoard(RunFolder(tmp_path / "run"), config, 0)
    board.close()
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    (text,) = events.Tensors("config/text_summary")
    assert to_yaml(config) in text.tensor_proto.string_val[0].decode()
    assert {HPARAMS_EXPERIMENT, HPARAMS_START} <= set(events.PluginTagToContent("hparams"))
    known = hyperparameters(config)
    assert known["model.width"] == 4 and "run.folder" not in known
    assert all(isinstance(value, bool | int | float | str) for value in known.values())


def test_every_step_moves_the_progress_and_from_the_second_on_it_says_what_is_left(
    photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_recolor.training.tracking.tracker.SECONDS_BETWEEN_LINES", 0.0)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    tracker = RunTracker(run, run_config(photos, tmp_path), world, RunLength(total=400, per_epoch=12, per_step=4))
    tracker.open(0)
    with tracker:
        assert tracker.progress.tasks[0].description == "first step"
        for images_seen in (4, 8, 12):
            tracker.advance(images_seen)
            assert tracker.progress.tasks[0].completed == images_seen
    first, *others = capsys.readouterr().err.splitlines()
    assert " left" not in first
    assert len(others) == 2 and all(re.search(r"images/s +\d+ s left$", line) for line in others)


def test_a_line_of_progress_has_no_loss_of_a_discriminator_that_does_not_learn(
    photos: Path, tmp_path: Path, world: World
) -> None:
    losses = {"discriminator": 0.5, "generator": 8.0, "l1": 0.08, "adversarial": 0.7}
    for adversarial, expected in (("bce", "D 0.500  G 8.00 (L1 0.0800)"), ("none", "G 8.00 (L1 0.0800)")):
        run = RunFolder(tmp_path / adversarial)
        run.path.mkdir()
        config = run_config(photos, tmp_path, loss={"adversarial": adversarial})
        tracker = RunTracker(run, config, world, RunLength(total=400, per_epoch=12, per_step=4))
        tracker.open(0)
        with tracker:
            tracker.log_step(4, losses, 2e-4, {"generator_gradient": 1.0, "discriminator_gradient": 0.0})
        assert tracker.losses == expected


def test_weights_and_biases_shows_one_run_though_it_was_stopped(
    photos: Path, tmp_path: Path, world: World, offline: None
) -> None:
    config = run_config(photos, tmp_path, tracking={"wandb": "colors", "samples_every_images": 12})
    train(config, world, stop_at_step=4)
    run = train(config, world).run
    files = sorted((run.logs / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(run.logs / 'wandb_id').read_text()}"}
    assert any((run.logs / "wandb").glob("offline-run-*/files/media/images/samples*.png"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_and_biases_that_does_not_start_is_refused_in_one_line(
    command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    done = command("train", "--data.photos", photos, *TINY, "--tracking.wandb", "colors", ranks=ranks)
    line = error_line(done) if ranks == 1 else done.stderr
    assert line.count("tracking.wandb=colors: W&B does not start") == 1
    assert "WANDB_MODE=offline" in line


def test_trouble_is_told_once_and_not_again_when_the_run_goes_on(
    photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(photos, tmp_path)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    losses = {"discriminator": 0.001, "generator": 1.0, "l1": 0.1, "adversarial": 0.7}
    norms = {"generator_gradient": 1.0, "discriminator_gradient": 0.0}

    def log(images: range) -> None:
        tracker = RunTracker(run, config, world, RunLength(total=10_000, per_epoch=12, per_step=4))
        tracker.open(images.start)
        with tracker:
            for images_seen in images[1:]:
                tracker.log_step(images_seen, losses, 2e-4, norms)

    log(range(30))
    assert len(rows(run, "warning")) == 1
    assert capsys.readouterr().err.count("WARNING: the discriminator classifies nearly every patch correctly") == 1
    log(range(30, 40))
    assert len(rows(run, "warning")) == 1
