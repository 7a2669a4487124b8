"""Ranks that find each other, and those that wait in vain: ranks are threads here, with real stores and ports."""

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from hpc_recolor.runtime import rendezvous
from hpc_recolor.runtime.distributed import check_environment
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.rendezvous import Meeting, candidate_ports, meet

HERE = "127.0.0.1"
# Long enough for threads on a loaded machine to meet; nothing waits for it to pass.
LONG_S = 120.0


def go_on() -> None:
    """No signal was received."""


def meet_all(meetings: list[Meeting]) -> list[dict[int, bytes]]:
    """What each rank reads in its store of what the others have written there."""

    def exchange(meeting: Meeting) -> dict[int, bytes]:
        store = meet(meeting, go_on, LONG_S)
        store.set(f"from {meeting.rank}", meeting.job)
        met = {rank: store.get(f"from {rank}") for rank in range(meeting.size)}
        store.add("done", 1)
        while meeting.rank == 0 and store.add("done", 0) < meeting.size:
            pass  # it holds the store
        return met

    with ThreadPoolExecutor(len(meetings)) as pool:
        return list(pool.map(exchange, meetings))


@contextmanager
def taken(*ports: int) -> Iterator[None]:
    """Another program listens there, and never answers."""
    servers = [socket.create_server((HERE, port)) for port in ports]
    yield
    for server in servers:
        server.close()


def free_ports(count: int) -> tuple[int, ...]:
    servers = [socket.create_server((HERE, 0)) for _ in range(count)]
    ports = tuple(server.getsockname()[1] for server in servers)
    for server in servers:
        server.close()
    return ports


def test_all_ranks_get_one_store() -> None:
    ports = free_ports(1)
    met = meet_all([Meeting(rank, 3, HERE, ports, "7 0") for rank in (2, 1, 0)])
    assert met == [dict.fromkeys(range(3), b"7 0")] * 3


def test_a_port_that_another_program_uses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_S", 1)
    first, second = free_ports(2)
    with taken(first):
        met = meet_all([Meeting(rank, 2, HERE, (first, second), "7 0") for rank in range(2)])
    assert met == [dict.fromkeys(range(2), b"7 0")] * 2


def test_two_jobs_that_derive_the_same_ports_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_S", 1)
    ports = free_ports(2)
    meetings = [Meeting(rank, 2, HERE, ports, job) for rank in range(2) for job in ("7 0", "8 0")]
    met = meet_all(meetings)
    assert met == [dict.fromkeys(range(2), meeting.job.encode()) for meeting in meetings]


def test_rank_0_names_those_that_do_not_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "NOTICE_S", 0)
    with pytest.raises(RankError, match=r"rendezvous: ranks 1, 2 of 3 at 127.0.0.1 did not come within 1 s"):
        meet(Meeting(0, 3, HERE, free_ports(1), "7 0"), go_on, limit_s=1)
    assert capsys.readouterr().err == "waiting for ranks 1, 2 of 3 at 127.0.0.1\n"


def test_the_others_name_rank_0_if_it_does_not_come() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RankError, match=f"rank 0 of 2 at 127.0.0.1:{port} did not come within 0 s"):
        meet(Meeting(1, 2, HERE, (port,), "7 0"), go_on, limit_s=0)


def test_rank_0_says_that_no_port_is_free() -> None:
    ports = free_ports(2)
    with taken(*ports), pytest.raises(RankError, match=f"every port of {ports[0]}, {ports[1]} is taken"):
        meet(Meeting(0, 2, HERE, ports, "7 0"), go_on, LONG_S)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait(rank: int) -> None:
    calls = 0

    def stop_at_the_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise EarlyEndError("stopped", 75)

    with pytest.raises(EarlyEndError):
        meet(Meeting(rank, 2, HERE, free_ports(1), "7 0"), stop_at_the_third, LONG_S)


def test_a_restart_derives_other_ports() -> None:
    assert candidate_ports("21_3 1") == candidate_ports("21_3 1")
    firsts = [candidate_ports(f"21_3 {restart}")[0] for restart in range(100)]
    assert len(set(firsts)) > 95
    assert all(10_000 <= port < 32_768 for job in range(100) for port in candidate_ports(f"{job} 0"))


def test_processes_that_srun_started_beside_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith("RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="srun with 2 tasks: each would be a run of its own"):
        check_environment()


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_that_mpirun_started_beside_each_other_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.endswith("RANK")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "1")
    check_environment()
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="mpirun with 2 processes: each would be a run of its own"):
        check_environment()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "x"}, "RANK=x: is not a number"),
        ({"RANK": ""}, "RANK=: is not a number"),
        ({"RANK": "2"}, "RANK=2: is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is not a number"),
        ({"MASTER_PORT": "29500 "}, "MASTER_PORT=29500 : is not a number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: is not a number"),
    ],
)
def test_ranks_that_cannot_be_are_refused(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a script has exported an empty or another launcher's value."""
    sound = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (sound | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=re.escape(problem)):  # which the rank itself prints
        check_environment()
