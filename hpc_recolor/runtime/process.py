"""This process and its machine, as /proc tells of them."""

import platform
from pathlib import Path


def memory_bytes() -> tuple[int, int]:
    """What this machine can give without swapping, page cache included, and what it has (proc_meminfo(5))."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    return available, total


def processor_name() -> str:
    """The processor, as Linux calls it (proc_cpuinfo(5))."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
