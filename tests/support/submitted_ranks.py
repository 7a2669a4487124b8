"""Scripts and ranks of submitted jobs, as /proc shows them."""

import os
from collections.abc import Iterator
from pathlib import Path


def ranks(cluster: Path) -> dict[int, int]:
    """Process ids of the cluster's ranks by rank, from /proc, from the moment their interpreters begin to start."""
    found: dict[int, int] = {}
    for pid, command, environment in _processes(cluster):
        if b"hpc_recolor.launch.job" in command and b"python" in os.path.basename(command[0]):
            found |= {int(variable[13:]): pid for variable in environment if variable.startswith(b"SLURM_PROCID=")}
    return found


def has_script(cluster: Path, name: str) -> bool:
    """Whether the script of a job of that name runs."""
    return any(
        command[1:]
        and os.path.basename(command[1]) == b"slurm_script"
        and b"SLURM_JOB_NAME=" + name.encode() in environment
        for _, command, environment in _processes(cluster)
    )


def _processes(cluster: Path) -> Iterator[tuple[int, list[bytes], list[bytes]]]:
    """Process id, command and environment of all processes that know the cluster."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if b"SLURM_CONF=" + bytes(cluster / "slurm.conf") in environment:
            yield int(process.name), command, environment
