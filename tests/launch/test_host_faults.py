"""Jobs on four hosts whose network, processors, disks or power fail: each ends by itself with the tensors of an
undisturbed run, or with one line that names rank, host and phase, after which `jobs restart` ends it so.

`-s` prints what each fault cost. Those without the mark `hosts` belong to the ordinary tests.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from hpc_recolor.launch.overview import inspect
from hpc_recolor.run_folder.time_account import TimeAccount, describe
from tests.launch.conftest import Hosts, script
from tests.support.fork_server import SLOW_DISK_S, ForkServer
from tests.support.live import Live, local_ranks, recolor, result, slurm, until
from tests.support.submitted_ranks import has_script, ranks
from tests.support.tolerances import ACCOUNT

LONG: dict[str, Any] = {"train.epochs": 100}  # not over before the fault has shown


def result_here(server: ForkServer, count: int, folder: Path, photos: Path, **values: object) -> dict[str, bytes]:
    """The result of the same run on ranks of this machine without SLURM, in a new folder."""
    folder.mkdir()
    return result(local_ranks(server, count, folder, photos, **values))


@pytest.fixture(scope="module")
def undisturbed(fork_server: ForkServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of the same run on two ranks."""
    return result_here(fork_server, 2, tmp_path_factory.mktemp("undisturbed") / "local", photos, **LONG)


@pytest.fixture(autouse=True)
def nothing_stays_behind(hosts: Hosts) -> Iterator[None]:
    """Once the hosts are healed no job is queued, no node drained or down, no rank alive."""
    yield
    hosts.heal()
    try:
        until(lambda: not slurm("squeue", "-h"), "the queue is empty")
    finally:
        for job in slurm("squeue", "-h", "-o", "%i").split():
            slurm("scancel", job)
    until(lambda: set(slurm("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "all nodes are idle")
    until(lambda: not ranks(hosts.folder), "no rank is alive")


class Cost:
    """What a fault costs a run: time until the run has ended [s], starts, and images that were trained twice."""

    def __init__(self, live: Live, name: str) -> None:
        self.live, self.name = live, name
        self.began_s, self.seen = time.monotonic(), live.images_seen

    def tell(self, what: str) -> None:
        starts = [event.images or 0 for event in self.live.history if event.kind == "start"]
        lost = max(0, self.seen - starts[-1]) if len(starts) > 1 else 0
        took_s = time.monotonic() - self.began_s
        print(f"\n| {self.name} | {what} | {took_s:.0f} s | {len(starts)} | {lost} |")


def until_over(live: Live) -> str:
    """Wait until the run has finished, through requeues, or its job has ended. Returns how."""

    def over() -> bool:
        if live.squeue("%r") == "BeginTime":
            live.until_waiting()
        return not live.squeue("%T")

    until(over, "the end")
    return str(live.history[-1].reason) if live.history[-1].kind == "end" else "killed"


def finish(live: Live, cost: Cost, hosts: Hosts) -> None:
    """Wait for the end of a disturbed run; if one line blames a rank, heal the hosts and restart it."""
    if until_over(live) == "finished":
        again = sum(event.kind == "start" for event in live.history) > 1
        return cost.tell("was queued again" if again else "went on")
    assert blames(live), live.log()
    blame = blames(live)[0]
    hosts.heal()
    done = recolor(live.folder, "jobs", "restart", "runs/train")
    assert done.returncode == 0, done.stderr
    assert until_over(live) == "finished", live.log()
    cost.tell(f"`{blame.split(';')[0]}`; restarted")


BLAME = re.compile(
    r"error: (the launcher's store .*)?ranks? \d.* on host node\d |srun: error: node\d: task \d+: Killed"
)


def blames(live: Live) -> list[str]:
    """The lines of all ranks, and of SLURM, that name one."""
    return [line for rank in range(4) for line in live.log(rank).splitlines() if BLAME.match(line)]


def lasting(*what: object, for_s: float | None = None) -> Callable[[Hosts, str], None]:
    """A fault, and how long it lasts [s]; by default until all is over."""
    name, *value = what

    def disturb(hosts: Hosts, node: str) -> None:
        hosts.fault(node, str(name), *value)
        if for_s:
            time.sleep(for_s)
            hosts.fault(node, "heal")

    return disturb


FAULTS = {
    "a link cut for 5 s": lasting("cut", for_s=5),
    "a link cut for 60 s": lasting("cut", for_s=60),
    "a link cut for good": lasting("cut"),
    "a host that loses all that it sends": lasting("mute"),
    "a host that loses all that it gets": lasting("deaf"),
    "30 % of the packets of a host lost for 120 s": lasting("loss", 30, for_s=120),
    "a host at a twentieth of its processors": lasting("slow", 0.05),
    "a host that falls dead": lasting("kill"),
}
IN_CI = (("a link cut for 5 s", 1), ("a host that falls dead", 0))
ALL = [
    pytest.param(fault, rank, marks=[] if (fault, rank) in IN_CI else [pytest.mark.hosts])
    for fault in FAULTS
    for rank in (0, 1)
]


@pytest.mark.parametrize(("fault", "rank"), ALL)
def test_a_run_outlives(
    fault: str,
    rank: int,
    hosts: Hosts,
    tmp_path: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
    forked_python: Path,
) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **LONG)
    live.until_training()
    cost = Cost(live, f"{fault}, rank {rank}")
    FAULTS[fault](hosts, live.history[0].nodes[rank])
    finish(live, cost, hosts)
    assert result(live.run) == undisturbed


def kill_at_the_start(live: Live, hosts: Hosts) -> None:
    until(lambda: live.history and ranks(hosts.folder), "a rank", poll_s=0.01)
    hosts.fault(live.history[0].nodes[1], "kill")


def kill_in_a_save(live: Live, hosts: Hosts) -> None:
    live.until_training()
    until(lambda: list(live.run.path.glob("checkpoints/.writing-*")), "a save", poll_s=0.01)
    hosts.fault(live.history[0].nodes[1], "kill")


def kill_in_a_requeue(live: Live, hosts: Hosts) -> None:
    live.until_training()
    slurm("scontrol", "requeue", live.job)
    hosts.fault(live.history[0].nodes[0], "kill")


@pytest.mark.hosts
@pytest.mark.parametrize("kill", [kill_at_the_start, kill_in_a_save, kill_in_a_requeue])
def test_a_run_outlives_a_host_that_falls_dead_at_the_worst_moment(
    kill: Callable[[Live, Hosts], None],
    hosts: Hosts,
    tmp_path: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
    forked_python: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kill is kill_in_a_save:
        monkeypatch.setenv(SLOW_DISK_S, "0.3")
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **LONG)
    kill(live, hosts)
    finish(live, Cost(live, kill.__name__.replace("_", " ")), hosts)
    assert result(live.run) == undisturbed


@pytest.mark.hosts
@pytest.mark.parametrize(("what", "daemons"), [("controller", ["slurmctld"]), ("database", ["slurmdbd", "mariadbd"])])
def test_a_run_outlives_slurm_losing_a_part_for_half_a_minute(
    what: str,
    daemons: list[str],
    hosts: Hosts,
    tmp_path: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
    forked_python: Path,
) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **LONG)
    live.until_training()
    cost = Cost(live, f"the {what} lost for 30 s")
    for daemon in daemons:
        os.kill(int((hosts.folder / f"{daemon}.pid").read_text()), signal.SIGKILL)
    time.sleep(30)
    script("up")
    finish(live, cost, hosts)
    assert result(live.run) == undisturbed


@pytest.mark.hosts
@pytest.mark.parametrize(
    ("name", "fault"),
    [("a host with 300 MiB of memory", ("memory", 300)), ("the clock of a host an hour ahead", ("clock", 3600))],
)
def test_a_run_outlives_a_host_that_is_odd_from_the_start(
    name: str,
    fault: tuple[str, int],
    hosts: Hosts,
    tmp_path: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
) -> None:
    """On new interpreters, whose memory counts as the host's, and which libfaketime is loaded into."""
    hosts.fault("node2", *fault)
    live = Live(tmp_path)
    live.submit(photos, **LONG)
    finish(live, Cost(live, name), hosts)
    assert result(live.run) == undisturbed


@pytest.mark.hosts
def test_a_run_outlives_a_host_whose_scratch_is_full(
    hosts: Hosts, tmp_path: Path, photos: Path, fork_server: ForkServer
) -> None:
    """On new interpreters, which have the host's own scratch."""
    prepared = recolor(tmp_path, "prepare", photos, "--out", "data", "--size", 32, "--val", 3, "--min-side", 1)
    assert prepared.returncode == 0, prepared.stderr
    of_data = LONG | {"data.photos": "null", "data.shards": tmp_path / "data"}
    (tmp_path / "hpc_recolor.yaml").write_text("scratch: /tmp/scratch\n")
    live = Live(tmp_path)
    hosts.fault("node2", "fill")
    live.submit(photos, **of_data)
    cost = Cost(live, "a host whose scratch is full")
    finish(live, cost, hosts)
    assert result(live.run) == result_here(fork_server, 2, tmp_path / "local", photos, **of_data)


@pytest.mark.hosts
def test_a_run_outlives_forty_requeues_in_a_row(
    hosts: Hosts, tmp_path: Path, photos: Path, fork_server: ForkServer, forked_python: Path
) -> None:
    long: dict[str, Any] = {"train.epochs": 600}
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **long)
    cost = Cost(live, "forty requeues in a row")
    for start in range(1, 41):
        live.until_saved_again(start)
        slurm("scontrol", "requeue", live.job)
        live.until_waiting()
    finish(live, cost, hosts)
    assert live.starts == 41
    assert result(live.run) == result_here(fork_server, 2, tmp_path / "local", photos, **long)


@pytest.mark.hosts
def test_halves_that_lose_each_other_end_with_a_line_and_train_on_once_they_are_healed(
    hosts: Hosts, tmp_path: Path, photos: Path, fork_server: ForkServer, forked_python: Path
) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, nodes=4, **LONG)
    live.until_training()
    cost = Cost(live, "a split into two halves")
    hosts.fault("node1,node2", "split")
    finish(live, cost, hosts)
    assert result(live.run) == result_here(fork_server, 4, tmp_path / "local", photos, **LONG)


class OutsideClock:
    """What can be seen of a run from outside, read again and again: how long its jobs ran [s], and did not before that.

    lost_s: from the commit of the newest checkpoint, or from the first step of a start, to the end after a kill.
    """

    def __init__(self, cluster: Path, live: Live) -> None:
        self.cluster, self.live = cluster, live
        self.seconds = {True: 0.0, False: 0.0}
        self.lost_s, self.trains_since, self._starts = 0.0, 0.0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before_s, waited_s = time.monotonic(), 0.0
        while not self._over.wait(0.1):
            runs, now_s = has_script(self.cluster, "train"), time.monotonic()
            waited_s += now_s - before_s if not runs else 0.0
            if runs:  # what comes after the last start is no wait
                self.seconds[True] += now_s - before_s
                self.seconds[False], waited_s = self.seconds[False] + waited_s, 0.0
            before_s = now_s
            if self.live.starts > self._starts:
                self._starts, self.trains_since = self.live.starts, time.time()

    def kill(self, rank: int) -> None:
        """Kill a rank, and wait for the end of the job."""
        os.kill(ranks(self.cluster)[rank], signal.SIGKILL)
        saved = max(path.stat().st_mtime for path in self.live.run.checkpoints.glob("images-*"))
        until(lambda: 0 not in ranks(self.cluster), "rank 0 has ended", poll_s=0.02)
        self.lost_s += time.time() - max(saved, self.trains_since)
        self.live.until_ended()


@pytest.mark.hosts
def test_the_account_of_a_run_through_five_preemptions_and_two_kills_is_that_of_an_outside_clock(
    hosts: Hosts, tmp_path: Path, photos: Path, forked_python: Path
) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **LONG | {"train.epochs": 600, "checkpoint.background": "false"})
    with OutsideClock(hosts.folder, live) as outside:
        for start in range(1, 8):
            live.until_training(start)
            if start in (3, 6):
                outside.kill(rank=1)
                assert recolor(tmp_path, "jobs", "restart", "runs/train").returncode == 0
            else:
                slurm(
                    "sbatch", "--exclusive", "--partition=urgent", "--nodes=4", "--output=/dev/null", "--wrap", "true"
                )
                live.until_waiting()
        live.until_training(8)
        assert recolor(tmp_path, "jobs", "cancel", "runs/train").returncode == 0
        live.until_ended()
    (row,), _ = inspect([live.run])
    found = sum(row.time, TimeAccount())
    truth_s = sum(outside.seconds.values())
    print(
        f"\n{describe(found)} of {found.total:.1f} s; outside {truth_s:.1f} s, waiting {outside.seconds[False]:.1f} s, "
        f"lost {outside.lost_s:.1f} s; inside {found.waiting:.1f} s, {found.lost:.1f} s"
    )
    assert found.total == pytest.approx(truth_s, abs=ACCOUNT * truth_s)
    assert found.waiting == pytest.approx(outside.seconds[False], abs=ACCOUNT * truth_s)
    assert found.lost == pytest.approx(outside.lost_s, abs=ACCOUNT * truth_s)
