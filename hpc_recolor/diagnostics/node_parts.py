"""The parts of a node's trial: small works of the kinds that training does, and how fast the node does them.

Each part returns numbers by key of `outliers.METRICS`, and raises OSError, RankError or BrokenNodeError if it fails.
"""

import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hpc_recolor.data.photo import SquareFit, to_square
from hpc_recolor.runtime import distributed, process

if TYPE_CHECKING:
    import torch

GIB, MIB = 2**30, 2**20
# The best of several windows is kept: what else runs on the node for a moment is no fault of it. A window is several
# times as long as the periods in which control groups give out processor time.
WINDOWS, WINDOW_S = 5, 0.4
# Factors of a product: integers, so that float32 and TF32 sum them without rounding, in any order.
LARGEST_FACTOR, SIDE, GPU_SIDE = 8, 512, 4096
WRITTEN_BYTES, WRITES = 16 * MIB, 3
REDUCED_BYTES, REDUCED_S = MIB, 1.5
# Without persistence, nvidia-smi starts each GPU first.
SMI_TIMEOUT_S, SMI_TIMEOUT_PER_GPU_S = 10.0, 2.0
# Fields of nvidia-smi that are 0 or No on a healthy GPU, as --help-query-gpu names them; old drivers lack some.
SMI_FAULTS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors since the driver was loaded",
    "remapped_rows.pending": "memory rows to be remapped by a reset",
    "remapped_rows.failure": "memory rows that could not be remapped",
    "retired_pages.pending": "memory pages to be retired by a reset",
    "clocks_throttle_reasons.hw_slowdown": "slowed down by its hardware, for heat or power",
}
HEALTHY = ("0", "no", "not active", "n/a", "[n/a]", "[not supported]", "[unknown error]", "")


class BrokenNodeError(Exception):
    """What a part has found broken."""


def product(gpus: int) -> dict[str, float]:
    """Matrix products on all cores, and on each of `gpus` GPUs, of which the slowest counts [10^9, 10^12 per second].

    Raises BrokenNodeError if one is wrong.
    """
    import torch

    torch.set_num_threads(1)  # a product a core: threads that share one wait for each other
    distributed.allow_tf32(False)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        rates = {"product": sum(pool.map(_product_rate, [torch.device("cpu")] * cores, [SIDE] * cores)) / 1e9}
    if gpus:
        each = [_product_rate(torch.device("cuda", number), GPU_SIDE) / 1e12 for number in range(gpus)]
        rates["gpu_product"] = min(each)
    return rates


def gpu(gpus: int) -> dict[str, float]:
    """The GPUs: whether they are there, report no fault, and how much memory the fullest has left [GiB]."""
    import torch

    if torch.cuda.device_count() < gpus:
        raise BrokenNodeError(f"torch sees {torch.cuda.device_count()} GPUs of {gpus}")
    timeout_s = SMI_TIMEOUT_S + gpus * SMI_TIMEOUT_PER_GPU_S
    # All fields at once; where nvidia-smi lacks one it refuses all, and is asked for each.
    found = _ask_smi([*SMI_FAULTS], timeout_s) or [row for name in SMI_FAULTS for row in _ask_smi([name], timeout_s)]
    for number, name, value in found:
        if value.lower() not in HEALTHY:
            raise BrokenNodeError(f"GPU {number}: {SMI_FAULTS[name]} ({name}: {value})")
    return {"gpu_memory": min(torch.cuda.mem_get_info(number)[0] for number in range(gpus)) / GIB}


def decode() -> dict[str, float]:
    """JPEGs decoded and resized as `prepare` does [images per second]."""
    y, x = np.mgrid[0:512, 0:512]
    pixels = np.stack([x // 2, y // 2, (x * y) % 251], axis=-1).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)

    def work() -> float:
        to_square(content.getvalue(), SquareFit(size=256, fit="crop"))
        return 1.0

    return {"decode": best_rate(work)}


def memory() -> dict[str, float]:
    """Memory that is available without swapping [GiB]."""
    return {"memory": process.memory_bytes()[0] / GIB}


def write(key: str, folder: str | None) -> dict[str, float]:
    """A file without a name written to a disk, until it is stored [10^6 bytes per second], and the room there [GiB].

    folder: may hold variables of the node; None: that of temporary files.
    """
    place = Path(os.path.expandvars(folder) if folder else tempfile.gettempdir())
    if not place.is_absolute() or "$" in str(place):
        raise BrokenNodeError(f"{folder} expands to '{place}'")
    place.mkdir(parents=True, exist_ok=True)  # as the ranks would
    content = os.urandom(MIB) * (WRITTEN_BYTES // MIB)
    with tempfile.TemporaryFile(dir=place) as file:

        def work() -> float:
            file.seek(0)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return WRITTEN_BYTES

        rate = max(_rate(work, 0) for _ in range(WRITES))
    return {key: rate / 1e6, f"{key}_free": shutil.disk_usage(place).free / GIB}


def all_reduce(
    rank: int, size: int, host: str, address: str, job: str, network: str | None, device: str
) -> dict[str, float]:
    """All-reduces among `size` nodes, as training does with gradients [10^6 bytes per second].

    host: the node of rank 0, and address: as it calls itself, where this node cannot resolve its name. job: a name that
    no other has. network: interface, None for any. device: as of `distributed.start`. Raises BrokenNodeError if a sum
    is wrong, RankError if nodes do not come.
    """
    import torch
    import torch.distributed as dist

    distributed.use_network(network)
    distributed.adopt(rank, size, 0, 1, address_of(host) or address, job)
    world = distributed.start(device, None)
    ones = torch.ones(REDUCED_BYTES // 4, device=world.device)
    began_s, count, over = time.monotonic(), 0, False
    while not over:
        ones.fill_(1)
        ones[0] = size + 1 if time.monotonic() - began_s > REDUCED_S else 0  # all stop once one would
        dist.all_reduce(ones)
        over = ones[0].item() > size
        count += 1
    took_s = time.monotonic() - began_s
    if not bool((ones[1:] == size).all()):
        raise BrokenNodeError(f"a sum over {size} nodes is wrong")
    return {"all_reduce": count * REDUCED_BYTES / took_s / 1e6}


def address_of(host: str) -> str | None:
    """The address of a host by its name; None if the name is unknown here, or is that of every machine to itself."""
    import socket

    with suppress(OSError):
        found = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        return None if found.startswith("127.") or found == "::1" else found
    return None


def best_rate(work: Callable[[], float]) -> float:
    """How much is done in a second, at best. work: does some, and returns how much."""
    return max(_rate(work, WINDOW_S) for _ in range(WINDOWS))


def _rate(work: Callable[[], float], at_least_s: float) -> float:
    began_s, done = time.monotonic(), work()
    while time.monotonic() - began_s < at_least_s:
        done += work()
    return done / (time.monotonic() - began_s)


def _product_rate(device: "torch.device", side: int) -> float:
    """Additions and multiplications in a second. Raises BrokenNodeError if a product is wrong."""
    import torch

    draw = torch.Generator().manual_seed(1)
    limits = (-LARGEST_FACTOR, LARGEST_FACTOR + 1)
    one, other = (torch.randint(*limits, (side, side), generator=draw).float().to(device) for _ in range(2))
    vector = torch.randint(*limits, (side, 1), generator=draw).double().to(device)
    expected = one.double() @ (other.double() @ vector)
    result = one @ other

    def work() -> float:
        torch.mm(one, other, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 2.0 * side**3

    rate = best_rate(work)
    if not torch.equal(result.double() @ vector, expected):
        raise BrokenNodeError(f"a matrix product on {device} is wrong")
    return rate


def _ask_smi(names: Sequence[str], timeout_s: float) -> list[tuple[int, str, str]]:
    """GPU, field and value, of all GPUs; empty where nvidia-smi does not know one of the fields."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except OSError:
        return []
    rows = [] if done.returncode else done.stdout.splitlines()
    return [
        (number, name, value.strip())
        for number, row in enumerate(rows)
        for name, value in zip(names, row.split(","), strict=False)
    ]
