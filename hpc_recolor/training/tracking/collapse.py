"""Detects collapse of adversarial training from the rows of metrics.jsonl."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from hpc_recolor.config import AdversarialName

MetricsRow = dict[str, Any]

# Loss of a discriminator at chance level: log 2; half the distance between the labels; the square of that for mse.
CHANCE_LOSS: dict[AdversarialName, float] = {"bce": 0.693, "l1": 0.5, "mse": 0.25}
# A discriminator wins if its loss stays below this share of chance level.
WINNING_SHARE = 0.07
READINGS = 20  # in a row: single batches may be easy

# Images are pale below this share of the originals' colorfulness. Colors appear late: measurements count from the share
# PALE_FROM of the run on, and several must agree.
PALE_SHARE = 0.3
PALE_FROM = 0.1
MEASUREMENTS = 3


def find_collapse(rows: Sequence[MetricsRow], adversarial: AdversarialName, epochs: int) -> dict[str, str]:
    """Problems that the newest rows of a run show: {name of the problem: sentence for the user}, empty if none.

    rows: of metrics.jsonl, oldest first; epochs: planned length of the run.
    """
    found = {}
    if winning := _discriminator_wins(rows, adversarial):
        found["discriminator"] = winning
    if pale := _images_are_pale(rows, epochs):
        found["colorfulness"] = pale
    return found


def _discriminator_wins(rows: Sequence[MetricsRow], adversarial: AdversarialName) -> str | None:
    chance = CHANCE_LOSS.get(adversarial)
    last = _newest(rows, "train", READINGS)
    if chance is None or len(last) < READINGS:
        return None
    losses = [row["discriminator"] for row in last]
    if max(losses) > WINNING_SHARE * chance or not all(losses):  # 0 where it did not learn yet
        return None
    return (
        f"the discriminator classifies nearly every patch correctly: its loss was below {max(losses):.3f} for the last "
        f"{last[0]['images_seen'] - last[-1]['images_seen']} images, {chance} is chance level. The generator then "
        "learns from L1 almost alone: check the samples; a smaller model.width, another loss.adversarial or more "
        "photographs may help, in a new run"
    )


def _images_are_pale(rows: Sequence[MetricsRow], epochs: int) -> str | None:
    last = [row for row in _newest(rows, "held_out", MEASUREMENTS) if row["epoch"] >= PALE_FROM * epochs]
    if len(last) < MEASUREMENTS:
        return None
    if any(row["colorfulness"] >= PALE_SHARE * row["original_colorfulness"] for row in last):
        return None
    colors, original = last[0]["colorfulness"], last[0]["original_colorfulness"]
    return (
        f"the colorized images are nearly gray: colorfulness {colors:.1f} against {original:.1f} of the originals, and "
        f"no more in the last {MEASUREMENTS} measurements. Check the samples; a smaller loss.l1_weight, or more "
        "epochs, may help, in a new run"
    )


def _newest(rows: Sequence[MetricsRow], kind: str, count: int) -> list[MetricsRow]:
    return list(islice((row for row in reversed(rows) if row["kind"] == kind), count))
