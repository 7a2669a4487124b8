"""A run folder has one job at a time: the second is refused, and a lock whose holder is gone is taken over."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.lock import STALE_S, Holder, RunLock
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT

# Takes the lock when told to, says how that went, and holds it until told to end.
JOB = """
import sys
from pathlib import Path
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.lock import RunLock
lock = RunLock(RunFolder(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock:
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(SLURM_JOB_ID="7")` starts a job in the run folder, up to the moment before it takes the lock."""
    jobs = []

    def start_job(**environment: str) -> "subprocess.Popen[str]":
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        jobs.append(job)
        assert tell(job, None) == "ready"
        return job

    yield start_job
    for job in jobs:
        job.kill()
        job.communicate()


def tell(job: "subprocess.Popen[str]", line: str | None) -> str:
    """Say a line to a job, and hear the next one."""
    assert job.stdin and job.stdout
    if line is not None:
        job.stdin.write(line + "\n")
        job.stdin.flush()
    return job.stdout.readline().strip()


def leave_lock(run: RunFolder, age_s: float, **changes: Any) -> None:
    """A lock that a process of another machine left behind, refreshed so long ago."""
    holder = Holder.here().model_dump() | {"host": "n3", "machine": "another", "pid": 17} | changes
    lock = run.path / ".lock"
    lock.write_text(json.dumps(holder))
    os.utime(lock, (time.time() - age_s,) * 2)


def files(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.iterdir())


def test_the_second_job_is_refused_with_the_name_of_the_first(run: RunFolder, start: Start) -> None:
    first = start(SLURM_JOB_ID="4711")
    assert tell(first, "go") == "held"
    with pytest.raises(UserError) as refusal, RunLock(run):
        pass
    line = str(refusal.value)
    assert all(part in line for part in (str(run.path), f"process {first.pid}", os.uname().nodename, "job 4711"))
    assert files(run) == [".lock"]
    tell(first, "end")
    assert first.wait(timeout=20) == 0
    assert files(run) == []
    with RunLock(run):
        assert files(run) == [".lock"]


def test_a_job_that_was_killed_frees_the_folder_at_once(run: RunFolder, start: Start) -> None:
    first = start()
    tell(first, "go")
    first.send_signal(signal.SIGKILL)  # not waited for: its corpse still has its number
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with RunLock(run) as lock:
        assert lock.refresh()
    assert files(run) == []


def test_a_job_that_is_only_stopped_keeps_the_folder(run: RunFolder, start: Start) -> None:
    first = start()
    tell(first, "go")
    first.send_signal(signal.SIGSTOP)
    os.utime(run.path / ".lock", (time.time() - 2 * STALE_S,) * 2)
    with pytest.raises(UserError, match="is in use by"), RunLock(run):
        pass


def test_of_jobs_that_take_over_at_once_exactly_one_wins(run: RunFolder, start: Start) -> None:
    jobs = [start() for _ in range(4)]
    leave_lock(run, age_s=2 * STALE_S)
    for job in jobs:
        assert job.stdin
        job.stdin.write("go\n")
    for job in jobs:
        assert job.stdin
        job.stdin.flush()
    heard = [tell(job, None) for job in jobs]
    assert heard.count("held") == 1, heard
    winner = jobs[heard.index("held")]
    assert all(f"process {winner.pid} " in line for line in heard if line != "held")


def test_of_threads_that_take_over_at_once_exactly_one_wins_every_time(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = RunLock._refuse_if_held

    def judge_slowly(lock: RunLock) -> None:
        judge(lock)
        time.sleep(0.02)  # so that the others could slip in here

    def take(lock: RunLock) -> str:
        barrier.wait()
        try:
            lock.__enter__()
        except UserError as error:
            return str(error)
        return "held"

    monkeypatch.setattr(RunLock, "_refuse_if_held", judge_slowly)
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        for round_number in range(6):
            if round_number % 2:  # every other time there is none to take over
                leave_lock(run, age_s=2 * STALE_S)
            locks = [RunLock(run) for _ in range(4)]
            heard = list(threads.map(take, locks))
            assert heard.count("held") == 1, heard
            locks[heard.index("held")].__exit__()
            assert files(run) == []


def test_a_later_process_with_the_same_number_is_not_taken_for_the_holder(run: RunFolder) -> None:
    me = Holder.here()
    assert me.started is not None
    leave_lock(run, age_s=0, machine=me.machine, pid=me.pid, started=me.started - 1)
    with RunLock(run):
        pass


def test_a_job_on_another_machine_holds_the_folder_while_it_refreshes(run: RunFolder) -> None:
    leave_lock(run, age_s=STALE_S - 20)
    with pytest.raises(UserError, match="process 17 on host n3"), RunLock(run):
        pass
    leave_lock(run, age_s=STALE_S + 1)
    with RunLock(run):
        pass


def test_a_job_that_slurm_requeued_takes_its_own_lock_over(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_lock(run, age_s=0, job="4711", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(UserError, match="job 4711"), RunLock(run):  # another step of the job, at the same time
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(run):
        pass


def test_a_requeued_job_gets_its_lock_back_though_a_file_server_still_locks_it_for_a_host_that_died(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_lock(run, age_s=0, job="4711", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with (run.path / ".lock").open() as of_the_dead:
        fcntl.flock(of_the_dead, fcntl.LOCK_EX)
        with RunLock(run):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b'{"pid": "x"}', b"[]"])
def test_garbage_in_the_lock_is_judged_by_its_age(run: RunFolder, content: bytes) -> None:
    lock = run.path / ".lock"
    lock.write_bytes(content)
    with pytest.raises(UserError, match="an unknown process"), RunLock(run):
        pass
    os.utime(lock, (time.time() - 2 * STALE_S,) * 2)
    with RunLock(run):
        pass


def test_refreshing_makes_the_lock_young_again(run: RunFolder) -> None:
    lock = run.path / ".lock"
    with RunLock(run) as held:
        os.utime(lock, (0, 0))
        assert held.refresh()
        assert abs(lock.stat().st_mtime - time.time()) < 5


@pytest.mark.parametrize("loss", ["taken over", "removed"])
def test_a_lock_that_was_lost_is_told_and_not_released(run: RunFolder, loss: str) -> None:
    lock = run.path / ".lock"
    with RunLock(run) as held:
        if loss == "taken over":
            (run.path / "other").write_text("other's")
            (run.path / "other").replace(lock)
            os.utime(lock, (0, 0))
        else:
            lock.unlink()
        assert not held.refresh()
    assert files(run) == ([".lock"] if loss == "taken over" else [])
    assert loss == "removed" or lock.stat().st_mtime == 0


def test_a_taker_that_was_killed_stands_in_the_way_for_a_while_only(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_recolor.run_folder.lock.CHANGING_S", 0.1)
    (run.path / ".lock.changing").touch()
    with pytest.raises(UserError, match="is being locked by another job"), RunLock(run):
        pass
    assert files(run) == [".lock.changing"]
    os.utime(run.path / ".lock.changing", (time.time() - 2 * STALE_S,) * 2)
    with RunLock(run):
        pass
    assert files(run) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(UserError, match=r"device: cannot be locked \(Read-only"), RunLock(RunFolder(folder)):
            pass
    finally:
        subprocess.run(["umount", folder], check=True)
    with pytest.raises(UserError, match=r"absent: cannot be locked \(No such"), RunLock(RunFolder(tmp_path / "absent")):
        pass


def test_the_copy_of_a_folder_that_is_in_use_is_not(run: RunFolder, tmp_path: Path) -> None:
    """Its lock names a process that is alive and holds another file."""
    with RunLock(run):
        copy = RunFolder(tmp_path.with_name("copy"))
        shutil.copytree(run.path, copy.path)
        with RunLock(copy):
            pass
        with pytest.raises(UserError, match="is in use by process"), RunLock(run):
            pass
