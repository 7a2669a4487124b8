"""metrics.jsonl: a row for each thing that was measured."""

import json
from pathlib import Path
from typing import Any


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line without its line break was cut by a kill, and is no row."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
