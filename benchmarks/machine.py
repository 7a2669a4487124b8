"""What every result must say of where it was measured."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.process import processor_name

PACKAGES = ("torch", "triton", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "kornia", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions of what is installed, commit of the code ("-dirty" if files differ from it)."""
    import torch

    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def check_out(out: Path | None) -> None:
    """Raise UserError if a result could not be written to this file."""
    if out and not out.parent.is_dir():
        raise UserError(f"out={out}: no such folder {out.parent}; make it first")


def synchronize(device: Any) -> None:
    """Wait until a GPU has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _commit() -> str | None:
    """None where there is no git, or no repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    """None where it is not installed, as deepspeed need not be for a benchmark of kernels."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
