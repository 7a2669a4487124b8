"""The machine and the versions that every result was measured with."""

import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.process import processor_name

PACKAGES = ("torch", "triton", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "kornia", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions of installed packages, commit of the code ("-dirty" if files differ from it)."""
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
    """Raise UserError if the folder of a result file does not exist."""
    if out and not out.parent.is_dir():
        raise UserError(f"out={out}", f"no such folder {out.parent}", "create it first")


def synchronize(device: Any) -> None:
    """Wait until a GPU has finished all queued work; no-op on CPUs."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def large_product(device: Any, dtype: Any, side: int | None = None) -> tuple[Callable[[], Any], float]:
    """A product of two large square matrices, which comes nearest to what a device can do, and its size [TFLOP].

    side: of the matrices; by default 8192 on GPUs, else 1024.
    """
    import torch

    side = side or (8192 if device.type == "cuda" else 1024)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: one @ other, 2 * side**3 / 1e12


def _commit() -> str | None:
    """None without git, or outside a repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    """None if it is not installed: a benchmark of kernels does not need deepspeed, for example."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
