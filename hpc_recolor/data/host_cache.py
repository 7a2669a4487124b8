"""Images that all ranks of a machine read, in memory that they share."""

import mmap
import os
import sys
from collections.abc import Callable
from math import prod
from secrets import token_bytes
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_recolor.runtime.distributed import World, gather, ranks_here
from hpc_recolor.runtime.process import machine_id

NAME = "hpc_recolor images"  # in /proc/PID/maps
TOKEN_BYTES = 16
Result = TypeVar("Result")


def shared_images(shape: tuple[int, ...], fill: Callable[[Tensor, int], None], world: World) -> Tensor | None:
    """uint8 images of this shape, which the ranks of each machine share, each of which fills a part.

    fill: given that part, one or more images, and the number of its first image.
    All ranks call it together. The memory is a file without a name (memfd_create(2)): it takes no room in /dev/shm, and
    the kernel frees it after the last process that maps it, however that ends. Returns None on all ranks of a machine
    where one of them cannot map it, after a line on stderr that says why.
    """
    machines = gather(world, machine_id())
    here = [rank for rank, machine in enumerate(machines) if machine == machines[world.rank]]
    is_first, size_bytes = world.rank == here[0], prod(shape)
    token = token_bytes(TOKEN_BYTES)
    file, failure = _attempt(make_file, size_bytes, token) if is_first else (None, "")
    files = gather(world, (f"/proc/{os.getpid()}/fd/{file}", token))
    path, token = files[here[0]]
    memory, refusal = _attempt(map_file, path, size_bytes, token)
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
    if images is not None:
        place, n = here.index(world.rank), len(images)
        start, end = n * place // len(here), n * (place + 1) // len(here)
        if start < end:
            fill(images[start:end], start)
    gather(world, None)  # which waits until they are filled
    return images


def make_file(size_bytes: int, token: bytes) -> int:
    """Descriptor of a new file in memory, with the token after its bytes. Raises OSError."""
    file = os.memfd_create(NAME)
    try:
        os.posix_fallocate(file, 0, size_bytes + len(token))  # fails where a write into missing memory would kill
        os.pwrite(file, token, size_bytes)
    except OSError:
        os.close(file)
        raise
    return file


def map_file(path: str, size_bytes: int, token: bytes) -> NDArray[np.uint8]:
    """Its bytes, uint8 (size_bytes,), which all processes that map it share.

    Raises OSError, or ValueError where it is another file: shorter, or without the token. So it is on two machines that
    pass for one, such as virtual machines resumed from one snapshot.
    """
    file = os.open(path, os.O_RDWR)
    try:
        memory = mmap.mmap(file, size_bytes + len(token))
        if memory[size_bytes:] != token:
            raise ValueError(f"{path} is another process's file")
        return np.frombuffer(memory, np.uint8, size_bytes)
    finally:
        os.close(file)


def _attempt(action: Callable[..., Result], *arguments: Any) -> tuple[Result | None, str]:
    """What it returns, or why it raised OSError or ValueError."""
    try:
        return action(*arguments), ""
    except OSError as error:
        return None, error.strerror or str(error)
    except ValueError as error:
        return None, str(error)


def _print_refusal(problem: str, size_bytes: int) -> None:
    print(
        f"data.cache=host: ranks of one machine cannot share the images ({problem}), so each keeps all of them, "
        f"{size_bytes / 2**30:.1f} GiB; run them as one user in one container, or use data.cache=none",
        file=sys.stderr,
    )
