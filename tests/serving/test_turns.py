"""The queue: few wait, one is colored at a time, nothing is done for those who are gone."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest

from hpc_recolor.serving.limits import Limits
from hpc_recolor.serving.turns import BusyError, GoneError, Turns

Result = TypeVar("Result")


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine. In a thread of its own: Playwright, once started, keeps an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def stays() -> bool:
    return False


async def left() -> bool:
    return True


def test_photographs_and_their_bytes_are_bounded() -> None:
    turns = Turns(Limits(max_bytes=100, max_waiting=3))
    for size in (100, 100, 0):
        turns.enter(size)
    with pytest.raises(BusyError):
        turns.enter(0)
    turns.leave(0)
    turns.enter(200)
    turns.leave(100)
    with pytest.raises(BusyError):
        turns.enter(101)


def test_one_job_runs_at_a_time_in_the_order_of_arrival() -> None:
    turns = Turns(Limits())
    running: list[int] = []
    order: list[int] = []

    def job(number: int) -> int:
        running.append(number)
        assert running == [number]
        running.remove(number)
        order.append(number)
        return threading.get_ident()

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(turns.run(stays, partial(job, number)) for number in range(20)))

    threads = finish(all_at_once())
    assert order == list(range(20))
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_nothing_is_done_for_those_who_are_gone_and_the_next_has_its_turn() -> None:
    turns = Turns(Limits())
    done: list[str] = []

    async def two() -> None:
        with pytest.raises(GoneError):
            await turns.run(left, lambda: done.append("first"))
        await turns.run(stays, lambda: done.append("second"))

    finish(two())
    assert done == ["second"]
