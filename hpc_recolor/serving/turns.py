"""Photographs take turns: one is colored at a time, on all cores, and few wait."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hpc_recolor.serving.limits import Limits

Result = TypeVar("Result")


class BusyError(Exception):
    """As many photographs wait as may."""


class GoneError(Exception):
    """Nobody waits for the result any more."""


class Turns:
    """The queue. `enter` a photograph, `run` its job, and `leave` with the same size once its result is sent."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._photos = self._bytes = 0
        self._turn = asyncio.Lock()
        # Always the same thread: others would each have OpenMP threads and a part of the heap of their own.
        self._worker = ThreadPoolExecutor(1, "coloring")

    def enter(self, size_bytes: int) -> None:
        """Count a photograph's file. Raises BusyError if it is one too many."""
        if self._photos >= self._limits.max_waiting or self._bytes + size_bytes > self._limits.held_bytes:
            raise BusyError
        self._photos += 1
        self._bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Count it no more."""
        self._photos -= 1
        self._bytes -= size_bytes

    async def run(self, is_gone: Callable[[], Awaitable[bool]], job: Callable[[], Result]) -> Result:
        """The job's result, once all that came before are done. Raises GoneError if `is_gone` by then."""
        async with self._turn:
            if await is_gone():
                raise GoneError
            return await asyncio.get_running_loop().run_in_executor(self._worker, job)
