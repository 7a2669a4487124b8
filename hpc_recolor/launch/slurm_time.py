"""Durations in SLURM's spellings (sbatch(1), --time)."""

import re
from math import ceil

from hpc_recolor.runtime.errors import UserError

UNITS_MIN = {1: (1,), 2: (1, 1 / 60), 3: (60, 1, 1 / 60)}  # of MINUTES, M:S, H:M:S
DAYS_UNITS_MIN = (60, 1, 1 / 60)  # after D-


def parse_time(text: str) -> int:
    """Minutes, rounded up, of M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises UserError for any other spelling."""
    match = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,8}(?::\d{1,4}){0,2})", text, re.ASCII)
    if not match:
        raise UserError(f"--time={text}", "not a duration", "write minutes, H:M:S or D-H:M:S")
    days, rest = match[1], [int(part) for part in match[2].split(":")]
    units = DAYS_UNITS_MIN if days else UNITS_MIN[len(rest)]
    minutes = ceil(int(days or 0) * 24 * 60 + sum(part * unit for part, unit in zip(rest, units, strict=False)) - 1e-9)
    if minutes < 1:
        raise UserError(f"--time={text}", "less than a minute", "use a minute or more")
    return minutes


def format_time(minutes: int) -> str:
    """D-HH:MM:SS or HH:MM:SS, as SLURM prints it."""
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def parse_time_left(text: str) -> int | None:
    """Seconds of squeue's remaining time, D-H:M:S, H:M:S or M:S; None where there is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
