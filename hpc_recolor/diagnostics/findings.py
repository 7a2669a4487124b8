"""What a check found: how bad it is, and what mends it."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A row of the doctor's table. fix: what mends it, unless it is ok."""

    subject: str
    severity: Severity
    what: str
    fix: str = ""


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
