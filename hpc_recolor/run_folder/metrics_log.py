"""metrics.jsonl: one row per reading of the losses, validation or event."""

import json
from pathlib import Path
from typing import Any

from hpc_recolor.run_folder.files import write_atomically


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line without a line break was cut off by a kill, and is left out."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append_metrics(file: Path, row: dict[str, Any]) -> None:
    """Add a row, as one line. Raises OSError if the disk is full."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def rewind_metrics(file: Path, images_seen: int) -> list[dict[str, Any]]:
    """Remove the rows after `images_seen`, but for those of starts, and return the others, oldest first.

    A run that resumes from a checkpoint sees those images again.
    """
    if not file.exists():
        return []
    kept = [row for row in read_metrics(file) if row["images_seen"] <= images_seen or row["kind"] == "start"]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return kept
