"""How often a run is measured by default: chosen once from its speed, the same on all ranks and after a stop."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc_recolor.run_folder.checkpoints import committed, read_manifest
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training import validation
from hpc_recolor.training.schedule import VALIDATION_EVERY_S, VALIDATION_SHARE, validation_interval
from hpc_recolor.training.tracking import tracker
from hpc_recolor.training.validation import WARM_UP_STEPS, SpeedClock
from tests.support import workers
from tests.support.training_runs import run_config, train
from tests.training.conftest import Worker
from tests.training.test_resume import rows

BY_TIME = {"log_every_steps": 100, "samples_every_images": 0, "tensorboard": False}


@pytest.mark.parametrize("images_per_s", [0.3, 4, 20, 300, 15_000, 900_000])
@pytest.mark.parametrize("validation_s", [0.01, 1, 20, 600])
def test_measuring_takes_a_few_percent_at_any_speed(images_per_s: float, validation_s: float) -> None:
    interval = validation_interval(images_per_s, validation_s)
    between_s = interval / images_per_s
    assert between_s >= VALIDATION_EVERY_S
    assert validation_s / between_s <= VALIDATION_SHARE
    assert between_s <= 2.5 * max(VALIDATION_EVERY_S, validation_s / VALIDATION_SHARE, 1 / images_per_s)


def test_the_time_of_measuring_is_not_counted_in_the_speed_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the one after the first epoch would have the others come far too often."""
    now_s = 0.0
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: now_s))
    clock = SpeedClock()
    for step in range(WARM_UP_STEPS):
        clock.tick(4 * step)
    now_s = 300.0
    clock.leave_out(290.0)
    assert clock.tick(100) == 10.0
    assert clock.images_per_s(4 * (WARM_UP_STEPS - 1) + 50) == 5.0


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement after the second step, the others every 16 images, as a small run is over too soon."""
    monkeypatch.setattr(validation, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(validation, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(validation, "validation_interval", lambda images_per_s, validation_s: 16)


@pytest.mark.slow
def test_the_interval_is_chosen_once_and_kept_when_the_run_goes_on(
    photos: Path, tmp_path: Path, world: World, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(run_config(photos, tmp_path / "whole", tracking=BY_TIME), world)
    measured = [row["images_seen"] for row in read_metrics(whole.run.metrics) if row["kind"] == "held_out"]
    assert measured == [12, 16, 32, 36]  # by time, and the first epoch; multiples of the interval; the end
    config = run_config(photos, tmp_path / "parts", tracking=BY_TIME)
    parts = train(config, world, stop_at_step=4, at_once=False)
    assert read_manifest(committed(parts.run)[-1]).progress["validation_interval"] == 16
    monkeypatch.setattr(validation, "validation_interval", lambda images_per_s, validation_s: 4)
    assert rows(train(config, world).run) == rows(whole.run)


@pytest.mark.slow
def test_all_ranks_measure_at_the_same_steps_by_the_clock_of_the_first(
    photos: Path, tmp_path: Path, on_ranks: Worker
) -> None:
    found = on_ranks(2, workers.validation_intervals, str(photos), str(tmp_path))
    assert [rank["interval"] for rank in found] == [16, 16]
    assert found[0]["measured"] == [12, 16, 32, 36]


@pytest.mark.slow
def test_figures_are_drawn_beside_training(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_in: list[int] = []
    monkeypatch.setattr(tracker, "plot_losses", lambda *_: drawn_in.append(threading.get_ident()))
    tracking: dict[str, Any] = {"samples_every_images": 12, "tensorboard": False}
    run = train(run_config(photos, tmp_path, tracking=tracking), world).run
    assert len(drawn_in) == 3
    assert threading.get_ident() not in drawn_in
    assert len(list(run.samples.iterdir())) == 3


@pytest.mark.slow
def test_a_figure_that_cannot_be_written_ends_the_run(
    photos: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no figures here")

    monkeypatch.setattr(tracker, "plot_losses", fail)
    with pytest.raises(OSError, match="no figures here"):
        train(run_config(photos, tmp_path), world)
