"""JSON from files that may be damaged."""

import json
from typing import Any


def parse_json(text: bytes | str) -> Any:
    """As `json.loads`. Raises ValueError if it is not JSON; also if it is nested too deeply, or not text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None
