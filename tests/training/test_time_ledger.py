"""What a start spends its time on is written to the run folder while it runs, and accounts for all of it."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import Mark, Start, TimeAccount, account, read_starts, write_starts
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.launcher_environment import ADOPTED_JOB
from hpc_recolor.training.time_ledger import WRITE_EVERY_S, TimeLedger, process_age_s
from tests.support.training_runs import make, run_config, train


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock, tmp_path: Path) -> TimeLedger:
    made = TimeLedger(age_s=7.0, clock=clock)
    made.open(RunFolder(tmp_path), images_seen=12)
    return made


def spend(ledger: TimeLedger, clock: Clock, *phases: tuple[str, float]) -> None:
    for phase, seconds in phases:
        ledger.enter_phase(phase)
        clock.now_s += seconds


def written(folder: Path) -> Start:
    return read_starts(RunFolder(folder))[-1]


def test_phases_are_counted_as_what_they_are_for(ledger: TimeLedger, clock: Clock, tmp_path: Path) -> None:
    with ledger:
        spend(ledger, clock, ("restoring", 1), ("measuring", 2), ("loading photographs", 4))
        spend(ledger, clock, ("training", 10), ("agreeing", 1), ("saving", 3), ("loading photographs", 5))
        spend(ledger, clock, ("measuring", 6), ("training", 7))
    assert written(tmp_path).seconds == {"starting": 12, "training": 23, "saving": 3, "measuring": 8}


def test_a_checkpoint_counts_once_it_is_committed_with_what_it_took(
    ledger: TimeLedger, clock: Clock, tmp_path: Path
) -> None:
    spend(ledger, clock, ("training", 10), ("saving", 1))
    ledger.start_checkpoint(20)
    assert written(tmp_path).marks == ()
    spend(ledger, clock, ("training", 5), ("saving", 2))
    ledger.commit_checkpoint(20)
    seconds = {"starting": 7.0, "training": 10.0, "saving": 3.0, "measuring": 0.0}
    assert written(tmp_path).marks == (Mark(images=20, seconds=seconds),)


def test_it_is_written_every_few_seconds_and_no_more_often(ledger: TimeLedger, clock: Clock, tmp_path: Path) -> None:
    spend(ledger, clock, ("training", WRITE_EVERY_S / 2), ("agreeing", WRITE_EVERY_S))
    assert written(tmp_path).seconds["training"] == 0
    ledger.enter_phase("training")
    assert written(tmp_path).seconds["training"] == 1.5 * WRITE_EVERY_S


def test_a_run_is_known_to_train_from_its_first_step_on_however_slow_its_disk(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(run: RunFolder, starts: Sequence[Start]) -> None:
        clock.now_s += 0.5
        write_starts(run, starts)

    monkeypatch.setattr("hpc_recolor.training.time_ledger.write_starts", slow)
    ledger = TimeLedger(clock=clock)
    ledger.open(RunFolder(tmp_path), images_seen=12)
    spend(ledger, clock, ("loading photographs", 1), ("training", 1))
    assert written(tmp_path).activity == "training"


def test_a_record_that_cannot_be_written_is_left_out(clock: Clock, tmp_path: Path) -> None:
    with TimeLedger(clock=clock) as ledger:
        ledger.open(RunFolder(tmp_path / "not there"), 0)
        spend(ledger, clock, ("training", 100), ("saving", 1))
    assert list(tmp_path.iterdir()) == []


def test_ending_counts_as_starting_unless_another_start_has_begun(
    ledger: TimeLedger, clock: Clock, tmp_path: Path
) -> None:
    with ledger:
        spend(ledger, clock, ("training", 3), ("saving", 1))
    clock.now_s += 2
    ledger._close_at_exit()
    assert written(tmp_path).seconds == {"starting": 9, "training": 3, "saving": 1, "measuring": 0}
    TimeLedger(clock=clock).open(RunFolder(tmp_path), images_seen=20)
    ledger._close_at_exit()
    assert [start.images for start in read_starts(RunFolder(tmp_path))] == [12, 20]


def test_what_a_rank_does_after_a_failure_is_lost_with_what_it_was_doing(
    ledger: TimeLedger, clock: Clock, tmp_path: Path
) -> None:
    """As waiting for the watchdog to find the rank that has failed."""
    spend(ledger, clock, ("training", 10))
    ledger.__exit__(RuntimeError, RuntimeError("connection closed by peer"), None)
    clock.now_s += 5
    ledger.close()
    assert written(tmp_path).seconds["training"] == 15


def test_a_start_records_its_job(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TimeLedger(clock=clock).open(RunFolder(tmp_path), images_seen=0)
    assert written(tmp_path).job is None
    monkeypatch.setenv(ADOPTED_JOB, "7 1")
    TimeLedger(clock=clock).open(RunFolder(tmp_path), images_seen=0)
    assert written(tmp_path).job == "7 1"


def test_a_process_knows_its_age() -> None:
    before_s = process_age_s()
    time.sleep(0.05)
    assert 0.04 < process_age_s() - before_s < 60
    assert before_s < 24 * 3600


def test_a_run_that_is_stopped_and_killed_accounts_for_all_of_its_time(
    photos: Path, tmp_path: Path, world: World
) -> None:
    submitted = time.time()
    config = run_config(photos, tmp_path, train={"epochs": 4})
    run = train(config, world, stop_at_step=3).run  # which saves
    killed = make(config, world, stop_at_step=8)
    setattr(killed, "_stop_here", fail)  # noqa: B010
    with pytest.raises(ZeroDivisionError), killed.context.ledger:
        killed.run_loop()
    train(config, world)
    starts = read_starts(run)
    accounts = account(starts, submitted, time.time(), is_running=False)
    assert [start.images for start in starts] == [0, 16, 16]
    assert [one.lost > 0 for one in accounts[:3]] == [False, True, False]
    assert [one.training > 0 for one in accounts[:3]] == [True, False, True]
    total = sum(accounts, TimeAccount()).total
    assert total == pytest.approx(time.time() - submitted, abs=1.0)


def fail() -> None:
    raise ZeroDivisionError
