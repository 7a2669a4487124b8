"""Threads that decode photographs: Pillow releases Python's lock while it works."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from PIL import Image

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def decoding_threads(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, by default one per core. Pending work is dropped on exit."""
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        Image.init()  # else all threads would, at the same time
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Like pool.map, but at most `ahead` results are computed before they are taken."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
