"""Threads that decode photographs: Pillow releases Python's lock while it works."""

import os
import warnings
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
    """Threads, one a core by default, in which odd metadata draws no warning. Left early, work not begun is dropped."""
    with warnings.catch_warnings(), ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        warnings.simplefilter("ignore")  # it is no reason to leave a photograph out
        Image.init()  # before threads would, all at once
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Like pool.map, but no more than `ahead` results wait to be taken."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
