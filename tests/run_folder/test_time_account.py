"""Every second of a run's wall clock is accounted for once."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import (
    ACTIVITIES,
    JobEnd,
    Mark,
    Start,
    TimeAccount,
    account,
    describe,
    percentages,
    read_starts,
    write_starts,
)

SUBMITTED = 1_800_000_000.0
seconds = st.floats(0, 1e6)
accounts = st.builds(TimeAccount, *[seconds] * 6)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Start], float]:
    """Starts of a run that waits, trains, saves and is killed, and when the last of them ended."""
    clock, images = SUBMITTED, 0
    starts: list[Start] = []
    for _ in range(draw(st.integers(1, 5))):
        clock += draw(seconds)
        spent = dict.fromkeys(ACTIVITIES, 0.0) | {"starting": draw(seconds)}
        marks: list[Mark] = []
        seen = images
        for _ in range(draw(st.integers(0, 4))):
            seen += draw(st.integers(1, 100))
            spent = {name: value + draw(seconds) for name, value in spent.items() if name != "starting"} | {
                "starting": spent["starting"]
            }
            marks.append(Mark(images=seen, seconds=spent))
        after = {name: value + draw(seconds) for name, value in spent.items()}
        starts.append(Start(began=clock, images=images, activity="training", seconds=after, marks=tuple(marks)))
        images = draw(st.sampled_from([mark.images for mark in marks] or [images]))
        clock = starts[-1].until
    return starts, clock


@given(lives(), seconds, st.booleans())
def test_all_time_since_submission_is_accounted_for_once(
    life: tuple[list[Start], float], later: float, is_running: bool
) -> None:
    starts, over = life
    found = account(starts, SUBMITTED, over + later, is_running)
    assert all(value >= -1e-3 for one in found for value in one.seconds.values())
    assert sum(one.total for one in found) == pytest.approx(over + later - SUBMITTED, abs=1e-3)


@given(lives())
def test_clocks_that_disagree_make_no_time_negative(life: tuple[list[Start], float]) -> None:
    starts = [start.model_copy(update={"began": start.began - 5e5 * (n % 2)}) for n, start in enumerate(life[0])]
    found = account(starts, SUBMITTED, None, is_running=False)
    assert all(value >= -1e-3 for one in found for value in one.seconds.values())
    assert all(one.total >= sum(start.seconds.values()) - 1e-3 for one, start in zip(found, starts, strict=True))


@given(accounts)
def test_percentages_sum_to_100(one: TimeAccount) -> None:
    shares = percentages(one)
    assert sum(shares.values()) == (100 if one.total else 0)
    assert all(abs(share - 100 * one.seconds[name] / one.total) < 1 for name, share in shares.items() if one.total)


def start(**fields: Any) -> Start:
    spent = {"starting": 10.0, "training": 100.0, "saving": 4.0, "measuring": 6.0}
    mark = Mark(images=80, seconds={"starting": 10.0, "training": 70.0, "saving": 3.0, "measuring": 5.0})
    given_ = {"began": SUBMITTED + 30, "images": 0, "activity": "training", "seconds": spent, "marks": (mark,)}
    return Start.model_validate(given_ | fields)


def test_a_killed_start_loses_what_came_after_its_last_checkpoint() -> None:
    again = start(began=SUBMITTED + 200, images=80, marks=())
    first, second = account([start(), again], SUBMITTED, now=None, is_running=False)
    assert first == TimeAccount(training=70, starting=10, saving=3, measuring=5, waiting=30, lost=32)
    assert second == TimeAccount(starting=10, waiting=50, lost=110)  # killed, too, before it saved


def test_a_damaged_checkpoint_loses_what_was_trained_for_it() -> None:
    older = Mark(images=40, seconds={"starting": 10.0, "training": 30.0, "saving": 1.0, "measuring": 0.0})
    first, _ = account([start(marks=(older, *start().marks)), start(images=40)], SUBMITTED, None, is_running=False)
    assert (first.training, first.lost) == (30, 79)


def test_a_run_that_trains_has_lost_nothing_yet() -> None:
    (one,) = account([start()], SUBMITTED, now=SUBMITTED + 160, is_running=True)
    assert one == TimeAccount(training=110, starting=10, saving=4, measuring=6, waiting=30)


def test_a_run_that_saved_last_has_lost_nothing() -> None:
    spent = {"starting": 10.0, "training": 100.0, "saving": 9.0, "measuring": 6.0}
    saved = Mark(images=90, seconds=spent | {"saving": 8.0})
    (one,) = account([start(seconds=spent, marks=(saved,))], SUBMITTED, None, is_running=False)
    assert one == TimeAccount(training=100, starting=10, saving=9, measuring=6, waiting=30)


def test_what_a_job_does_after_its_ranks_is_no_wait() -> None:
    again = start(began=SUBMITTED + 200, images=100, marks=())
    recorded = [JobEnd(start().until + 5, "7 0"), JobEnd(again.until + 7, "7 1")]
    first, second = account([start(), again], SUBMITTED, now=None, is_running=False, ends=recorded)
    assert (first.starting, second.starting, second.waiting) == (15, 17, 45)
    assert first.total + second.total == recorded[-1].time - SUBMITTED


def test_an_end_that_was_not_recorded_is_that_of_the_ranks() -> None:
    """As of a host that fell dead; the next start's end is not taken for it."""
    again = start(began=SUBMITTED + 200, images=100, marks=())
    first, second = account(
        [start(), again], SUBMITTED, now=None, is_running=False, ends=[JobEnd(again.until + 7, "7 1")]
    )
    assert (first.starting, second.starting, second.waiting) == (10, 17, 50)


@pytest.mark.parametrize(("job", "starting", "waiting"), [("7 0", 10, 50), (None, 60, 0)])
def test_the_end_of_a_start_that_trained_nothing_is_no_earlier_ones(
    job: str | None, starting: float, waiting: float
) -> None:
    """As of a job that the preflight ended after a host had fallen dead. Older records have no job."""
    again = start(began=SUBMITTED + 200, images=100, marks=(), job="7 2")
    between = [JobEnd(again.began, "7 1")]
    first, second = account([start(job=job), again], SUBMITTED, now=None, is_running=False, ends=between)
    assert (first.starting, second.waiting) == (starting, waiting)


def test_a_run_that_waits_again_says_so_apart() -> None:
    *_, waits = account([start()], SUBMITTED, now=SUBMITTED + 1150, is_running=False)
    assert waits == TimeAccount(waiting=1000)


def test_it_is_told_in_whole_percentages_the_largest_first() -> None:
    assert describe(TimeAccount(training=2, waiting=1)) == "67 % training, 33 % waiting"
    shares = [int(part.split()[0]) for part in describe(TimeAccount(1, 2, 3, 4, 5, 6)).split(", ")]
    assert all(larger >= smaller for larger, smaller in pairwise(shares))


def test_what_is_written_is_read_and_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_starts(run) == []
    write_starts(run, [start(), start(images=80)])
    assert read_starts(run) == [start(), start(images=80)]
    run.time.write_text("{")
    assert read_starts(run) == []
