"""How far the training of a run is, read from its folder."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_recolor.config_file import load_recorded
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json

# Of metrics.jsonl: what nearly always holds a row of losses, and far more than there is between two of them.
TAILS_BYTES = (1 << 13, 1 << 18)


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of training; None where it is unknown. time_left_s: of all its epochs, at the last measured rate."""

    epoch: float | None = None
    epochs: int | None = None
    images_per_s: float | None = None
    time_left_s: float | None = None


NO_PROGRESS = TrainingProgress()


def read_progress(run: RunFolder) -> TrainingProgress:
    """The progress of a run, as far as its folder can be read."""
    try:
        epochs = load_recorded(run.config).train.epochs
    except UserError:
        epochs = None
    row = next(filter(None, (_last_losses(run.metrics, size) for size in TAILS_BYTES)), {})
    try:
        seen, epoch, rate = (float(row[key]) for key in ("images_seen", "epoch", "images_per_s"))
    except (KeyError, TypeError, ValueError):
        seen = epoch = rate = math.nan
    if not math.isfinite(seen + epoch + rate):
        return TrainingProgress(epoch=0.0 if epochs and not row else None, epochs=epochs)
    if not (epochs and epoch > 0 and rate > 0):
        return TrainingProgress(epoch=epoch, epochs=epochs, images_per_s=rate)
    left = max(0.0, epochs * seen / epoch - seen)
    return TrainingProgress(epoch=min(epoch, epochs), epochs=epochs, images_per_s=rate, time_left_s=left / rate)


def _last_losses(metrics: Path, tail_bytes: int) -> dict[str, Any]:
    """The last complete row of losses in the last bytes of a file; empty if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - tail_bytes))
            lines = file.read().split(b"\n")[:-1]  # a last line without a line break was truncated by a kill
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "train":
            return row
    return {}
