"""An adversarial loss that enters late: which network learns when, at every ZeRO stage, and after a stop too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.config import Config, LossConfig
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.schedule import Phase, phase_at
from tests.support import training_runs
from tests.support.training_runs import differences, make, state, train
from tests.training.test_resume import rows

pytestmark = pytest.mark.slow

LATE: dict[str, Any] = {"discriminator_from": 8, "adversarial_from": 20}  # of 36 images, 4 a step


def run_config(photos: Path, folder: Path, stage: int = 0, accumulate: int = 1) -> Config:
    section = {"epochs": 3, "batch_size": 4, "lr_constant": 1.0, "device": "cpu", "threads": 1}
    return training_runs.run_config(
        photos,
        folder,
        train=section | {"accumulate": accumulate, "adversarial_lr_scale": 0.5},
        loss=LATE,
        deepspeed={"zero_stage": stage},
        tracking={"log_every_steps": 1},
    )


@pytest.mark.parametrize(
    ("loss", "phases"),
    [
        ({}, [Phase.BOTH] * 3),
        ({"adversarial": "none"}, [Phase.GENERATOR] * 3),
        (LATE, [Phase.GENERATOR, Phase.DISCRIMINATOR, Phase.BOTH]),
        ({"adversarial_from": 20}, [Phase.DISCRIMINATOR, Phase.DISCRIMINATOR, Phase.BOTH]),
        ({"discriminator_from": 20}, [Phase.GENERATOR, Phase.GENERATOR, Phase.BOTH]),
    ],
)
def test_phases_by_images_seen(loss: dict[str, Any], phases: list[Phase]) -> None:
    assert [phase_at(LossConfig(**loss), images) for images in (0, 8, 20)] == phases


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", [0, 3])
def test_networks_learn_in_their_phases(
    photos: Path, tmp_path: Path, world: World, stage: int, accumulate: int
) -> None:
    trainer = make(run_config(photos, tmp_path, stage, accumulate), world)
    learned: list[set[str]] = []
    run_step = trainer.run_step

    def noted(batch: Any) -> Any:
        before = {name: value.clone() for name, value in state(trainer).items()}
        agreed = run_step(batch)
        changed = differences(before, state(trainer))
        weights = {name.split(".")[0] for name in changed if ".weight." in name}
        learned.append(weights & {"generator", "discriminator"})
        return agreed

    trainer.run_step = noted  # type: ignore[method-assign]
    trainer.run_loop()
    assert learned == [{"generator"}] * 2 + [{"discriminator"}] * 3 + [{"generator", "discriminator"}] * 4
    logged = [row for row in rows(trainer.run) if row["kind"] == "train"]
    assert [row["lr"] for row in logged] == pytest.approx([2e-4] * 4 + [1e-4] * 5)  # of the next step
    assert [row["adversarial"] > 0 for row in logged] == [False] * 5 + [True] * 4
    assert [row["discriminator"] > 0 for row in logged] == [False] * 2 + [True] * 7
    assert all(row["l1"] > 0 for row in logged)


@pytest.mark.parametrize("stop_at_step", [3, 6])
def test_a_run_stopped_in_any_phase_ends_in_the_same_state(
    photos: Path, tmp_path: Path, world: World, stop_at_step: int
) -> None:
    expected = state(train(run_config(photos, tmp_path / "whole"), world))
    train(run_config(photos, tmp_path / "stopped"), world, stop_at_step)
    found = state(train(run_config(photos, tmp_path / "stopped"), world))
    assert differences(expected, found) == []
    assert all(torch.isfinite(value).all() for value in found.values())
