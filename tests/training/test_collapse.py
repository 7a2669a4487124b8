"""Collapse of adversarial training is found from a run's rows, and only where it is."""

from typing import Any

import pytest

from hpc_recolor.config import AdversarialName
from hpc_recolor.training.tracking.collapse import MEASUREMENTS, READINGS, find_collapse

EPOCHS = 10


def readings(*losses: float) -> list[dict[str, Any]]:
    return [
        {"kind": "train", "images_seen": 16 * n, "epoch": 1.0, "discriminator": loss} for n, loss in enumerate(losses)
    ]


def measurements(*colorfulness: float, epoch: float = 5.0) -> list[dict[str, Any]]:
    return [
        {"kind": "held_out", "images_seen": 16, "epoch": epoch, "colorfulness": value, "original_colorfulness": 40.0}
        for value in colorfulness
    ]


@pytest.mark.parametrize(
    ("adversarial", "chance"), [("bce", 0.693), ("l1", 0.5), ("mse", 0.25)], ids=lambda value: str(value)
)
def test_a_discriminator_that_always_wins_is_told(adversarial: AdversarialName, chance: float) -> None:
    found = find_collapse(readings(*[0.05 * chance] * READINGS), adversarial, EPOCHS)
    assert list(found) == ["discriminator"]
    assert (
        f"below {0.05 * chance:.3f} for the last {16 * (READINGS - 1)} images, {chance} is chance level"
        in found["discriminator"]
    )
    assert find_collapse(readings(*[0.1 * chance] * READINGS), adversarial, EPOCHS) == {}


def test_easy_batches_in_between_are_no_trouble() -> None:
    assert find_collapse(readings(*[0.01] * (READINGS - 1)), "bce", EPOCHS) == {}
    assert find_collapse(readings(*[0.01] * READINGS, 0.5), "bce", EPOCHS) == {}
    assert find_collapse(readings(0.5, *[0.01] * READINGS), "bce", EPOCHS) != {}


def test_without_an_adversary_its_loss_of_zero_is_no_trouble() -> None:
    assert find_collapse(readings(*[0.0] * READINGS), "none", EPOCHS) == {}


def test_pictures_that_stay_nearly_gray_are_told() -> None:
    found = find_collapse(measurements(*[4.0] * MEASUREMENTS), "bce", EPOCHS)
    assert list(found) == ["colorfulness"]
    assert "colorfulness 4.0 against 40.0 of the originals" in found["colorfulness"]


def test_colors_may_take_a_while() -> None:
    assert find_collapse(measurements(*[4.0] * MEASUREMENTS, epoch=0.5), "bce", EPOCHS) == {}
    assert find_collapse(measurements(*[4.0] * (MEASUREMENTS - 1)), "bce", EPOCHS) == {}
    assert find_collapse(measurements(*[4.0] * MEASUREMENTS, 20.0), "bce", EPOCHS) == {}
