"""A rank that dies, hangs or raises ends all ranks, with one line that names it. Real ranks over gloo."""

import os
import signal
import socket
import subprocess
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.exit_codes import FAILED, STOPPED
from hpc_recolor.training.watchdog.culprit import find_culprit, furthest_behind
from hpc_recolor.training.watchdog.heartbeat import Heartbeat, PeerStatus, RankState
from hpc_recolor.training.watchdog.watchdog import Watchdog
from tests.conftest import ROOT
from tests.support.commands import environment, launched, start_ranks
from tests.support.fork_server import ForkServer, Process
from tests.support.watched import FAULTY_STEP

HOST = socket.gethostname()
HANG_S, SILENCE_S = 4.0, 6.0
# Time for ranks to start, most of it imports on two slow cores, and to end after the limit.
START_S, END_S = 90.0, 25.0


@dataclass
class Ranks:
    """Processes of one run; `processes` are the ranks, or the one launcher that holds them."""

    folder: Path
    processes: "list[Process | subprocess.Popen[bytes]]"

    def pid(self, rank: int) -> int | None:
        file = self.folder / str(rank)
        return int(file.read_text() or 0) or None if file.exists() else None

    def wait(self, but: int | None = None) -> list[int | None]:
        """Exit codes, after all have ended but one."""
        return [None if n == but else process.wait(START_S + END_S) for n, process in enumerate(self.processes)]

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def messages(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]

    def end(self) -> None:
        for pid in filter(None, (self.pid(rank) for rank in range(4))):
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.wait()


def runs(pid: int) -> bool:
    """Whether the process is a rank of ours, and not ended (a zombie has no command line)."""
    try:
        return b"tests.support.watched" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def poll(condition: Callable[[], object], limit_s: float) -> None:
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, "not within the limit"
        time.sleep(0.1)


Launch = Callable[..., Ranks]


@pytest.fixture
def launch(tmp_path: Path, fork_server: ForkServer) -> Iterator[Launch]:
    """`launch("killed", rank=1)` starts ranks of tests.support.watched; launcher: through torchrun."""
    started: list[Ranks] = []

    def run(fault: str, rank: int, ranks: int = 2, launcher: bool = False, endless: bool = False) -> Ranks:
        call = ["tests.support.watched", "--fault", fault, "--rank", str(rank), "--pids", str(tmp_path)]
        call += ["--hang_s", str(HANG_S), "--silence_s", str(SILENCE_S), f"--endless={str(endless).lower()}"]
        processes: list[Process | subprocess.Popen[bytes]] = []
        with (tmp_path / "stderr").open("w") as errors:
            if launcher:
                command = [*launched(ranks), *call]
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=errors))
            else:
                module, *flags = call
                processes += start_ranks(fork_server, ROOT, module, flags, ranks, errors, errors)
        started.append(Ranks(tmp_path, processes))
        return started[-1]

    yield run
    for ranks in started:
        ranks.end()


def assert_names(message: str, rank: int, phase: str) -> None:
    assert message.startswith(f"error: rank {rank} on host {HOST} "), message
    assert f"while {phase}, step {FAULTY_STEP}" in message


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_others_end(launch: Launch, rank: int) -> None:
    ranks = launch("killed", rank, ranks=3)
    assert ranks.wait() == [-signal.SIGKILL if number == rank else FAILED for number in range(3)]
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], rank, "training")
    assert "killed" in ranks.messages[0]


def test_a_killed_rank_is_named_before_the_launcher_ends_the_others(launch: Launch) -> None:
    ranks = launch("killed", 1, ranks=3, launcher=True)
    assert ranks.wait() == [FAILED]
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 1, "training")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_and_the_others_end(launch: Launch, rank: int) -> None:
    ranks = launch("stopped", rank, ranks=3)
    assert ranks.wait(but=rank) == [None if number == rank else FAILED for number in range(3)]
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], rank, "training")
    assert "its process is stopped" in ranks.messages[0]


def test_a_stopped_rank_under_the_launcher_is_named_and_the_others_end(launch: Launch) -> None:
    ranks = launch("stopped", 1, launcher=True)
    poll(lambda: ranks.pid(0) and ranks.pid(1), START_S)
    stopped, other = ranks.pid(1), ranks.pid(0)
    assert stopped and other
    poll(lambda: not runs(other), SILENCE_S + END_S)
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 1, "training")
    os.kill(stopped, signal.SIGKILL)  # the launcher would, 30 s later
    assert ranks.wait() == [FAILED]


@pytest.mark.parametrize(
    ("fault", "phase", "error"),
    [
        ("raises", "training", "ValueError: no such color in this photograph"),
        ("save raises", "saving", "OSError: [Errno 28] No space left on device: 'shard-00001'"),
        ("out of memory", "training", "MemoryError"),
    ],
)
def test_a_rank_that_raises_names_itself_with_its_traceback(launch: Launch, fault: str, phase: str, error: str) -> None:
    ranks = launch(fault, 1, ranks=3)
    assert ranks.wait() == [FAILED] * 3
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 1, phase)
    assert error in ranks.messages[0]
    assert ranks.errors.count("Traceback") == 1
    assert "watched.py" in ranks.errors


def test_rank_0_that_raises_is_heard_although_it_holds_the_store(launch: Launch) -> None:
    ranks = launch("raises", 0)
    assert ranks.wait() == [FAILED] * 2
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 0, "training")


def test_a_rank_that_raises_under_the_launcher_names_itself(launch: Launch) -> None:
    ranks = launch("raises", 1, launcher=True)
    assert ranks.wait() == [FAILED]
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 1, "training")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_with_its_line_and_all_end(launch: Launch, rank: int) -> None:
    ranks = launch("hangs", rank)
    assert ranks.wait() == [FAILED] * 2
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], rank, "loading photographs")
    assert "watched.py" in ranks.messages[0]
    assert "in hang" in ranks.messages[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_for_the_user_on_one_rank_is_said_once_and_without_a_traceback(launch: Launch, rank: int) -> None:
    ranks = launch("own error", rank)
    assert ranks.wait() == [2 if number == rank else FAILED for number in range(2)]
    assert ranks.messages == ["error: data.photos=x: vanished; restore it"], ranks.errors
    assert "Traceback" not in ranks.errors


def test_a_rank_that_leaves_alone_is_named_to_those_that_lose_it(launch: Launch) -> None:
    ranks = launch("leaves", 1)
    poll(lambda: ranks.processes[0].poll() is not None, START_S + END_S)
    assert ranks.processes[0].returncode == FAILED
    assert len(ranks.messages) == 1, ranks.errors
    assert_names(ranks.messages[0], 1, "training")
    assert "exited before the others" in ranks.messages[0]
    assert "run.name=x: taken" in ranks.messages[0]


@pytest.mark.parametrize(("fault", "rank"), [("none", 0), ("late", 0), ("late", 1)])
def test_ranks_that_finish_one_after_the_other_accuse_nobody(launch: Launch, fault: str, rank: int) -> None:
    ranks = launch(fault, rank, ranks=3)
    assert ranks.wait() == [0, 0, 0]
    assert not ranks.messages
    assert "Traceback" not in ranks.errors


def test_ranks_that_are_asked_to_stop_leave_together_and_accuse_nobody(launch: Launch) -> None:
    ranks = launch("none", 0, endless=True)
    poll(lambda: ranks.pid(0) and ranks.pid(1), START_S)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [STOPPED] * 2
    assert not ranks.messages


def test_a_suspended_job_that_goes_on_accuses_nobody(launch: Launch) -> None:
    ranks = launch("none", 0, endless=True)
    poll(lambda: ranks.pid(0) and ranks.pid(1), START_S)
    for process in ranks.processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(SILENCE_S + 2)
    for process in ranks.processes:
        process.send_signal(signal.SIGCONT)
    time.sleep(SILENCE_S / 2)
    assert [process.poll() for process in ranks.processes] == [None, None], ranks.errors
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.wait() == [STOPPED] * 2


def test_one_rank_alone_has_no_watchdog_and_its_error_passes(world: World) -> None:
    with pytest.raises(ValueError, match="mine"), Watchdog(world, HANG_S, SILENCE_S):
        raise ValueError("mine")


def test_entering_a_phase_costs_next_to_nothing(world: World) -> None:
    watchdog = Watchdog(world, HANG_S, SILENCE_S)
    assert min(timeit.repeat(lambda: watchdog.enter_phase("training", 1), number=1000, repeat=5)) / 1000 < 20e-6


HEARTBEAT = Heartbeat(
    rank=0,
    host="h",
    machine="elsewhere",
    pid=1,
    count=1,
    phase="training",
    step=7,
    still_s=0.0,
    in_collective=False,
    code_line="a.py:1 in a",
)


def peer(heartbeat: Heartbeat, silent_s: float = 0.0, not_running_s: float = 0.0) -> PeerStatus:
    status = PeerStatus(heartbeat.rank)
    status.update(heartbeat.to_json().encode(), 0.0)
    status.silent_s, status.not_running_s = silent_s, not_running_s
    return status


def culprit(*peers: PeerStatus) -> str | None:
    return find_culprit(peers, silence_s=30.0, hang_s=100.0, machine="here")


def test_ranks_that_move_accuse_nobody_however_long_one_of_them_takes() -> None:
    slow, quick = replace(HEARTBEAT, still_s=900.0), replace(HEARTBEAT, rank=1, still_s=1.0)
    assert culprit(peer(slow), peer(quick)) is None


def test_a_silent_rank_is_accused_sooner_once_others_have_lost_a_connection() -> None:
    cut_off = replace(HEARTBEAT, rank=1, state=RankState.DISCONNECTED, error="RuntimeError: closed by peer")
    assert culprit(peer(HEARTBEAT, silent_s=6.0), peer(replace(HEARTBEAT, rank=1))) is None
    assert "rank 0 on host h sent no heartbeat for 6 s" in str(culprit(peer(HEARTBEAT, silent_s=6.0), peer(cut_off)))


def test_a_rank_that_was_cut_off_by_nobody_is_named_itself_after_a_while() -> None:
    cut_off = replace(HEARTBEAT, rank=1, state=RankState.DISCONNECTED, error="RuntimeError: NCCL error 2")
    assert culprit(peer(HEARTBEAT), peer(cut_off, not_running_s=34.0)) is None
    assert culprit(peer(HEARTBEAT), peer(cut_off, not_running_s=36.0)) == (
        "rank 1 on host h failed while training, step 7: RuntimeError: NCCL error 2"
    )


def test_ranks_that_have_left_are_never_accused() -> None:
    assert (
        culprit(peer(replace(HEARTBEAT, state=RankState.LEFT), silent_s=1000.0), peer(replace(HEARTBEAT, rank=1)))
        is None
    )


def test_a_rank_that_never_spoke_is_accused_by_its_number() -> None:
    mute = PeerStatus(1)
    mute.silent_s = 31.0
    assert "rank 1 sent no heartbeat for 31 s while starting" in str(culprit(peer(HEARTBEAT), mute))


def test_the_rank_that_others_wait_for_is_furthest_behind() -> None:
    two = replace(HEARTBEAT, rank=1)
    assert furthest_behind([replace(HEARTBEAT, step=6), two]) == [replace(HEARTBEAT, step=6)]
    assert furthest_behind([HEARTBEAT, replace(two, in_collective=True)]) == [HEARTBEAT]
    earlier = replace(HEARTBEAT, phase="loading photographs", still_s=5.0)
    assert furthest_behind([earlier, replace(two, still_s=4.9)]) == [earlier]


def test_ranks_that_nothing_tells_apart_are_named_together() -> None:
    both = [peer(replace(HEARTBEAT, rank=rank, still_s=101.0 + rank)) for rank in (0, 1)]
    assert str(culprit(*both)).startswith("ranks 0 on host h, 1 on host h hang while training, step 7, for 101 s")
