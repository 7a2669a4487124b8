"""Does the game between the two networks still work? Said in plain words from the rows of metrics.jsonl."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from hpc_recolor.config import AdversarialName

Row = dict[str, Any]

# What a discriminator loses that cannot tell at all: log 2, and half the label's distance, in square for mse.
UNDECIDED_LOSS: dict[AdversarialName, float] = {"bce": 0.693, "l1": 0.5, "mse": 0.25}
WINNING_SHARE = 0.07
READINGS = 20  # in a row: single batches may be easy

# Colors come late: a measurement counts from this share of the run on, and several must agree.
PALE_SHARE = 0.3
PALE_FROM = 0.1
MEASUREMENTS = 3


def find_collapse(rows: Sequence[Row], adversarial: AdversarialName, epochs: int) -> dict[str, str]:
    """What is wrong by the newest rows of a run: a name for each trouble, and a sentence on it.

    rows: of metrics.jsonl, oldest first; epochs: how long the run is to be.
    """
    found = {}
    if winning := _discriminator_wins(rows, adversarial):
        found["discriminator"] = winning
    if pale := _is_pale(rows, epochs):
        found["colorfulness"] = pale
    return found


def _discriminator_wins(rows: Sequence[Row], adversarial: AdversarialName) -> str | None:
    undecided = UNDECIDED_LOSS.get(adversarial)
    last = _newest(rows, "train", READINGS)
    if undecided is None or len(last) < READINGS:
        return None
    losses = [row["discriminator"] for row in last]
    if max(losses) > WINNING_SHARE * undecided:
        return None
    return (
        f"the discriminator tells nearly every patch: its loss was below {max(losses):.3f} for the last "
        f"{last[0]['images_seen'] - last[-1]['images_seen']} images, {undecided} is a draw. The generator then learns "
        "little from it but L1: look at the samples; a smaller model.width, another loss.adversarial or more "
        "photographs may help, in a new run"
    )


def _is_pale(rows: Sequence[Row], epochs: int) -> str | None:
    last = [row for row in _newest(rows, "held_out", MEASUREMENTS) if row["epoch"] >= PALE_FROM * epochs]
    if len(last) < MEASUREMENTS:
        return None
    if any(row["colorfulness"] >= PALE_SHARE * row["original_colorfulness"] for row in last):
        return None
    colors, original = last[0]["colorfulness"], last[0]["original_colorfulness"]
    return (
        f"the colored pictures are nearly gray: colorfulness {colors:.1f} against {original:.1f} of the originals, and "
        f"no more in the last {MEASUREMENTS} measurements. Look at the samples; a smaller loss.l1_weight, or more "
        "epochs, may help, in a new run"
    )


def _newest(rows: Sequence[Row], kind: str, count: int) -> list[Row]:
    return list(islice((row for row in reversed(rows) if row["kind"] == kind), count))
