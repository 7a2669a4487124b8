"""What a check found: its severity, a message and a suggested fix."""

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A row of the doctor's table. subject: what was checked. fix: suggested fix; not shown if severity is ok."""

    subject: str
    severity: Severity
    message: str
    fix: str = field(default="", kw_only=True)


def first_line(error: BaseException) -> str:
    """The message of an exception, short enough for a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
