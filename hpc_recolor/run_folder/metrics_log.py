"""metrics.jsonl: one row a reading of the losses, validation or event."""

import json
from pathlib import Path
from typing import Any


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line without a line break was truncated by a kill and is ignored."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
