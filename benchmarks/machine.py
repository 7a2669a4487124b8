"""The machine and the versions that every result was measured with."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
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


def product_tflop_per_s(device: Any, dtype: Any, side: int | None = None) -> float:
    """Speed of a product of two large square matrices, the highest that networks come near [TFLOP/s].

    side: of the matrices; by default 8192 on GPUs, where it is what sellers' peaks are measured by, else 1024. The
    median of five rounds after one of warming up.
    """
    import torch

    on_gpu = device.type == "cuda"
    side = side or (8192 if on_gpu else 1024)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times, repetitions = [], 10 if on_gpu else 1
    for _ in range(6):
        synchronize(device)
        started_s = time.perf_counter()
        for _ in range(repetitions):
            one @ other
        synchronize(device)
        times.append((time.perf_counter() - started_s) / repetitions)
    return 2 * side**3 / median(times[1:]) / 1e12


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
