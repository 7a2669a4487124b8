"""metrics.jsonl: one row per reading of the losses, validation or event."""

import json
from pathlib import Path
from typing import Any

from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError, cannot_read
from hpc_recolor.runtime.json_text import parse_json


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line without a line break was cut off by a kill, and is left out.

    Raises UserError with file and line if one is broken.
    """
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise cannot_read(str(file), error, "check its permissions, or restore it from a copy") from None
    return [_parse(line, f"{file} line {number}") for number, line in enumerate(lines, 1)]


def append_metrics(file: Path, row: dict[str, Any]) -> None:
    """Add a row, as one line. Raises OSError if the disk is full."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def rewind_metrics(file: Path, images_seen: int) -> list[dict[str, Any]]:
    """Remove the rows after `images_seen`, but for those of starts, and return the others, oldest first.

    A run that resumes from a checkpoint sees those images again. Raises UserError as `read_metrics` does.
    """
    if not file.exists():
        return []
    kept = [row for row in read_metrics(file) if _is_before(row, images_seen) or row["kind"] == "start"]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return kept


def _is_before(row: dict[str, Any], images_seen: int) -> bool:
    """A row that does not say when it was written is not thrown away."""
    seen = row.get("images_seen")
    return not isinstance(seen, int | float) or seen <= images_seen


def _parse(line: bytes, subject: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError:
        raise UserError(subject, "not JSON", "remove the line, or restore the file from a copy") from None
    if not isinstance(row, dict):
        problem = f"a {type(row).__name__}, not a mapping of keys to values"
        raise UserError(subject, problem, "remove the line")
    if not isinstance(row.get("kind"), str):
        raise UserError(subject, "does not say of which kind it is", "remove the line")
    return row
