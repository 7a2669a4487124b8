"""Checks of this machine. Each uses the component that it checks; a failing check does not stop the others."""

import io
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.diagnostics.findings import Finding, first_line
from hpc_recolor.runtime import distributed, process
from hpc_recolor.runtime.errors import UserError

SHOWN_PACKAGES = ("torch", "torchvision", "triton", "deepspeed", "submitit")
GIB = 2**30
LOW_DISK_GIB = 10.0
LOW_SHARED_GIB = 1.0
LOW_MEMORY_GIB = 2.0  # roughly the memory of torch, DeepSpeed and DALI before the first photograph
KERNEL_TOLERANCE = 1e-4  # absolute, of values in [-1, 1]; working kernels are within 1e-5
FIRST_WITH_TF32 = 8  # major compute capability
COMMAND_TIMEOUT_S = 20.0  # of nvidia-smi, sinfo and the like

INSTALL = "pip install 'hpc-recolor[cuda13]', or [cuda12] for CUDA 12 (in the repository: -e '.[cuda13]')"
NO_CLUSTER = "log in where jobs are submitted, ask its administrators, or try python -m hpc_recolor.dev_cluster up"
OTHER_DALI = "uninstall nvidia-dali-* and install one of them again, or use --data.loader torch"


def check_machine(folder: Path, needs_cluster: bool = False) -> list[Finding]:
    """The findings of all checks, whatever they raise or print.

    folder: its free space is checked; needs_cluster: whether a cluster that takes no jobs is an error.
    """
    # Subject, check, and the suggested fix if the check itself fails.
    checks: tuple[tuple[str, Callable[[], Finding], str], ...] = (
        ("packages", check_packages, INSTALL),
        ("GPU", check_gpu, "compare nvidia-smi with torch.version.cuda, and install the matching torch"),
        ("driver", check_driver, "reinstall the driver; on a cluster, run the doctor on a compute node: srun ..."),
        ("DALI", check_dali, OTHER_DALI),
        ("Triton", check_triton, f"install the Triton version that torch requires: {INSTALL}"),
        ("DeepSpeed", check_deepspeed, "pip install --force-reinstall deepspeed"),
        ("NCCL/gloo", check_ranks, "unset RANK and NCCL_*; if that does not help, install torch again"),
        ("SLURM", lambda: check_slurm(needs_cluster), NO_CLUSTER),
        ("free space", lambda: check_space({folder, Path()}), "work in a folder that you can read"),
        ("/dev/shm", lambda: check_shared_memory(Path("/dev/shm")), "mount a tmpfs there, or use --data.loader dali"),
        ("memory", check_memory, "check /proc/meminfo"),
    )
    with _quiet():
        return [_run_check(*check) for check in checks]


def check_packages() -> Finding:
    """Python, and the packages that setup.py requires, in the required versions."""
    shown, wrong = [f"Python {platform.python_version()}"], []
    for need in _requirements():
        found = _version(need)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        if not found:
            wrong.append(f"{need.name} is missing")
        elif not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} is {found}, expected {need.specifier}")
        elif need.name in SHOWN_PACKAGES:
            shown.append(f"{need.name} {found}")
    return Finding("packages", "error" if wrong else "ok", ", ".join(wrong or shown), fix=INSTALL)


def check_gpu() -> Finding:
    """The GPUs that torch can use."""
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    if not gpus:
        return Finding("GPU", "note", "none that torch can use; everything runs on the CPU")
    return Finding("GPU", "ok", describe_gpus(gpus))


def describe_gpus(gpus: Sequence[Any]) -> str:
    """Names, memory and capabilities. gpus: as torch.cuda.get_device_properties returns them."""
    kinds = Counter(
        f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in gpus
    )
    message = "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if any(gpu.major >= FIRST_WITH_TF32 for gpu in gpus):
        message += "; fp32 is exact there, unless train.tf32 lets it round to TF32, which is several times as fast"
    return message


def check_driver() -> Finding:
    """Whether the NVIDIA driver supports the CUDA version of torch."""
    import torch

    if not shutil.which("nvidia-smi"):
        return Finding("driver", "note", "nvidia-smi not found: no NVIDIA driver")
    return assess_driver(_output("nvidia-smi"), torch.version.cuda, torch.cuda.is_available())


def assess_driver(smi_output: str, torch_cuda: str | None, usable: bool) -> Finding:
    """Compare the driver with torch.

    smi_output: nvidia-smi's table. torch_cuda: the CUDA version that torch is built for. usable: torch sees a GPU.
    """
    driver = re.search(r"(?:Driver|KMD) Version: *([\d.]+)", smi_output)
    newest = re.search(r"CUDA (?:UMD )?Version: *([\d.]+)", smi_output)
    message = f"driver {driver[1] if driver else 'unknown'} for CUDA {newest[1] if newest else 'unknown'}"
    if not torch_cuda:
        return Finding("driver", "error", f"{message}, but torch is built without CUDA", fix=INSTALL)
    message += f", torch built for CUDA {torch_cuda}"
    # Within a major version newer programs run on older drivers (NVIDIA, "CUDA Compatibility", minor versions).
    if newest and Version(torch_cuda).major > Version(newest[1]).major:
        return Finding(
            "driver", "error", f"{message}: too new", fix="update the driver, or install torch for the driver's CUDA"
        )
    if not usable:
        return Finding(
            "driver", "error", f"{message}, but torch cannot use a GPU", fix="unset CUDA_VISIBLE_DEVICES; restart"
        )
    return Finding("driver", "ok", message)


def check_dali() -> Finding:
    """Decodes a JPEG with DALI."""
    from hpc_recolor.data import pipeline

    installed = [need for need in _requirements() if need.name.startswith("nvidia-dali") and _version(need)]
    message = ", ".join(f"{need.name} {_version(need)}" for need in installed)
    if not installed:
        return Finding("DALI", "warning", "not installed; torch's slower loader is used", fix=INSTALL)
    if len(installed) > 1:
        return Finding("DALI", "error", f"{message} overwrite each other", fix=OTHER_DALI)
    if not installed[0].specifier.contains(str(_version(installed[0])), prereleases=True):
        return Finding("DALI", "error", f"{message}, expected {installed[0].specifier}", fix=INSTALL)
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 60)).save(content, "JPEG")
    if pipeline.undecodable([np.frombuffer(content.getvalue(), np.uint8)]):
        return Finding("DALI", "error", f"{message} cannot decode a JPEG", fix=OTHER_DALI)
    return Finding("DALI", "ok", f"{message} decodes a JPEG")


def check_triton() -> Finding:
    """Launches one of our kernels and compares it with the reference."""
    import torch

    if not torch.cuda.is_available():
        return Finding("Triton", "note", "no GPU for its kernels; the reference in torch is used")
    from recolor_kernels import rgb_to_lab

    levels = torch.arange(8 * 8 * 3, dtype=torch.uint8, device="cuda").reshape(1, 8, 8, 3)
    pairs = zip(rgb_to_lab(levels, impl="triton"), rgb_to_lab(levels, impl="reference"), strict=True)
    apart = max(float((ours - truth).abs().max()) for ours, truth in pairs)
    message = f"a compiled kernel is within {apart:.1g} of the reference"
    return Finding("Triton", "ok" if apart < KERNEL_TOLERANCE else "error", message, fix=INSTALL)


def check_deepspeed() -> Finding:
    """Wraps a network in an engine, as training does."""
    from torch import nn

    from hpc_recolor.training.engine import deepspeed_engine

    with _ranks() as world:
        deepspeed_engine.wrap(nn.Linear(2, 2).to(world.device), Config(), world)
        return Finding("DeepSpeed", "ok", f"creates an engine on {world.device}")


def check_ranks() -> Finding:
    """All-reduces a number over all ranks, as training does with gradients: NCCL on a GPU, else gloo."""
    import torch

    with _ranks() as world:
        one = torch.ones(1, device=world.device)
        torch.distributed.all_reduce(one)
        message = f"{torch.distributed.get_backend()} sums over {int(one)} of {world.size} ranks"
        return Finding("NCCL/gloo", "ok" if int(one) == world.size else "error", message, fix="install torch again")


def check_slurm(needed: bool) -> Finding:
    """Whether jobs can be submitted from here; an error if that is needed, else a note."""
    message, takes_jobs = _describe_cluster()
    if takes_jobs:
        return Finding("SLURM", "ok", message)
    if not needed:
        return Finding("SLURM", "note", f"{message}; runs start on this machine only")
    return Finding("SLURM", "error", message, fix=NO_CLUSTER)


def _describe_cluster() -> tuple[str, bool]:
    """What SLURM says of its cluster, and whether it takes jobs."""
    if not shutil.which("sinfo"):
        return "sinfo not found", False
    try:
        partitions = dict.fromkeys(_output("sinfo", "--noheader", "--format=%P").split())
        release = _output("sinfo", "--version").strip()
    except OSError as error:
        return first_line(error), False
    return f"{release}, partitions: {', '.join(partitions) or 'none'}", bool(partitions)


def check_space(folders: set[Path], low_gib: float = LOW_DISK_GIB) -> Finding:
    """Free space on each of the file systems that hold these files or folders."""
    places = {place.stat().st_dev: place.absolute() for place in sorted(folders)}
    free_gib = {place: shutil.disk_usage(place).free / GIB for place in places.values()}
    message = ", ".join(f"{gib:.1f} GiB at {place}" for place, gib in free_gib.items())
    enough = min(free_gib.values()) >= low_gib
    return Finding("free space", "ok" if enough else "warning", message, fix=f"free {low_gib:g} GiB or more")


def check_shared_memory(place: Path, low_gib: float = LOW_SHARED_GIB) -> Finding:
    """Free shared memory, through which workers of torch's loader pass their batches."""
    usage = shutil.disk_usage(place)
    fix = "mount it larger (docker run --shm-size=8g), or use --data.loader dali"
    message = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    return Finding(str(place), "ok" if usage.free / GIB >= low_gib else "warning", message, fix=fix)


def check_memory() -> Finding:
    """Memory that is available without swapping."""
    available, total = (size / GIB for size in process.memory_bytes())
    enough, fix = available >= LOW_MEMORY_GIB, "stop other programs, or ask SLURM for more"
    return Finding("memory", "ok" if enough else "warning", f"{available:.1f} of {total:.1f} GiB available", fix=fix)


def _run_check(subject: str, check: Callable[[], Finding], fix: str) -> Finding:
    try:
        return check()
    except UserError as error:
        return Finding(subject, "error", f"{error.subject}: {error.problem}", fix=error.fix)
    except Exception as error:
        return Finding(subject, "error", first_line(error), fix=fix)


@contextmanager
def _ranks() -> Iterator[distributed.World]:
    try:
        yield distributed.start("auto", None)
    finally:
        distributed.stop()


@contextmanager
def _quiet() -> Iterator[None]:
    """Discards all output, also of C libraries and other programs."""
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(1), "w") as stdout, os.fdopen(os.dup(2), "w") as stderr:
        _point_output_at(nowhere.fileno(), nowhere.fileno())
        try:
            yield
        finally:
            _point_output_at(stdout.fileno(), stderr.fileno())


def _point_output_at(stdout: int, stderr: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise OSError((done.stderr or done.stdout).strip() or f"{command[0]} exits with {done.returncode}")
    return done.stdout


def _requirements() -> list[Requirement]:
    """Requirements in setup.py, extras included."""
    return [Requirement(line) for line in requires("hpc-recolor") or []]


def _version(need: Requirement) -> str | None:
    try:
        return version(need.name)
    except PackageNotFoundError:
        return None
