"""Images that all ranks of a machine read, in memory that they share."""

import mmap
import os
import sys
from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_recolor.runtime.distributed import World, gather, ranks_here
from hpc_recolor.runtime.process import machine_id

NAME = "hpc_recolor images"  # in /proc/PID/maps
Result = TypeVar("Result")


def shared_images(shape: tuple[int, ...], fill: Callable[[Tensor], None], world: World) -> Tensor | None:
    """uint8 images of this shape, which the first rank of each machine fills and the others there map.

    All ranks call it together. The memory is a file without a name (memfd_create(2)): it takes no room in /dev/shm, and
    the kernel frees it after the last process that maps it, however that ends. Returns None on all ranks of a machine
    where one of them cannot map it, after a line on stderr that says why.
    """
    machines = gather(world, machine_id())
    here = [rank for rank, machine in enumerate(machines) if machine == machines[world.rank]]
    is_first, size_bytes = world.rank == here[0], prod(shape)
    file, failure = _attempt(make_file, size_bytes) if is_first else (None, "")
    paths = gather(world, f"/proc/{os.getpid()}/fd/{file}")
    memory, refusal = _attempt(map_file, paths[here[0]], size_bytes)
    problems = gather(world, failure or refusal)
    if file is not None:
        os.close(file)
    if len(here) < ranks_here():
        problem = "they do not see each other's processes, as in a container for each"
    else:
        problem = "".join([problems[rank] for rank in here if problems[rank]][:1])
    images = torch.from_numpy(memory.reshape(shape)) if memory is not None and not problem else None
    if is_first and images is None:
        _print_refusal(problem, size_bytes)
    if is_first and images is not None:
        fill(images)
    gather(world, None)  # which waits until they are filled
    return images


def make_file(size_bytes: int) -> int:
    """Descriptor of a new file in memory. Raises OSError."""
    file = os.memfd_create(NAME)
    try:
        os.posix_fallocate(file, 0, size_bytes)  # fails here, where a write into missing memory would kill the process
    except OSError:
        os.close(file)
        raise
    return file


def map_file(path: str, size_bytes: int) -> NDArray[np.uint8]:
    """Its bytes, uint8 (size_bytes,), which all processes that map it share. Raises OSError."""
    file = os.open(path, os.O_RDWR)
    try:
        return np.frombuffer(mmap.mmap(file, size_bytes), np.uint8)
    finally:
        os.close(file)


def _attempt(action: Callable[..., Result], *arguments: Any) -> tuple[Result | None, str]:
    """What it returns, or why it raised OSError."""
    try:
        return action(*arguments), ""
    except OSError as error:
        return None, error.strerror or str(error)


def _print_refusal(problem: str, size_bytes: int) -> None:
    print(
        f"data.cache=host: ranks of one machine cannot share the images ({problem}), so each keeps all of them, "
        f"{size_bytes / 2**30:.1f} GiB; run them as one user in one container, or use data.cache=none",
        file=sys.stderr,
    )
