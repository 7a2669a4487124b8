"""Processes and their machine, read from /proc. The only reader of process identities."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

# State letters of proc_pid_stat(5) of processes that have ended: dead, and not yet reaped by their parent.
ENDED = ("X", "Z")


def machine_id() -> str:
    """Names the boot and the PID namespace of this process, in which process IDs are unique.

    Host names may be shared, and containers on one host number their processes separately.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def state_letter(pid: int) -> str:
    """The state of a process on this machine (proc_pid_stat(5)); X if there is none with this ID."""
    fields = _stat_fields(pid)
    return fields[0] if fields else "X"


def start_time(pid: int | Literal["self"]) -> int | None:
    """When a process on this machine started [clock ticks since boot]; None if it has ended.

    Tells a process from a later one with the same ID.
    """
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in ENDED else None


def age_s(started: int) -> float:
    """Since when a process that started then, see `start_time`, has been running [s]."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))


def _stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state letter on; empty if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return []
    return text.rpartition(")")[2].split()  # the name, in parentheses, may contain anything


def memory_bytes() -> tuple[int, int]:
    """Memory available without swapping, page cache included, and installed memory [bytes] (proc_meminfo(5)).

    Both are less where a control group limits this process, as in a container or a job (cgroups(7)).
    """
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    for limit, used in map(group_memory_bytes, _memory_groups()):
        available, total = min(available, max(0, limit - used)), min(total, limit)
    return available, total


def group_memory_bytes(group: Path) -> tuple[int, int]:
    """Limit of a control group's memory, of version 1 or 2, and what it uses and cannot drop [bytes]."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # not of this version, or without a limit: "max"
            counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return int((group / limit).read_text()), int((group / used).read_text()) - int(counters[cache])
    return sys.maxsize, 0


def _memory_groups() -> Iterator[Path]:
    """The control group that counts the memory of this process, and those that it lies in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            mount = Path("/sys/fs/cgroup", "memory" if controllers else "")
            group = mount / path.lstrip("/")
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(mount)))


def processor_name() -> str:
    """The processor model name (proc_cpuinfo(5)), or the architecture where the kernel names none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def wait_without_spinning() -> None:
    """Call this before torch loads OpenMP, whose threads wait for each other in busy loops.

    Beside other load these cost more than the work: a small U-Net on two cores with four busy processes trained 14
    images/s, and 58 with so few turns of the loop (libgomp's default is 300,000); alone 246 and 234. Other OpenMP
    libraries know the policy only.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
