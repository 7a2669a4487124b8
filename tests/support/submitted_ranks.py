"""Ranks of submitted jobs, as /proc shows them."""

import os
from pathlib import Path


def ranks(cluster: Path) -> dict[int, int]:
    """Process ids of the cluster's ranks by rank, from /proc, from the moment their interpreters begin to start."""
    found: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        ours = b"SLURM_CONF=" + bytes(cluster / "slurm.conf") in environment
        if ours and b"hpc_recolor.launch.job" in command and b"python" in os.path.basename(command[0]):
            found |= {
                int(variable[13:]): int(process.name)
                for variable in environment
                if variable.startswith(b"SLURM_PROCID=")
            }
    return found
