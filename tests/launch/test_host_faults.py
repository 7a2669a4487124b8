"""Jobs on four hosts whose network, processors, disks or power fail: each ends by itself with the tensors of an
undisturbed run, or with one line that names rank, host and phase, after which `jobs restart` ends it so.

`-s` prints what each fault cost. Those without the mark `hosts` belong to the ordinary tests.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import Hosts
from tests.support.fork_server import ForkServer
from tests.support.live import Live, local_ranks, recolor, result, slurm, until
from tests.support.submitted_ranks import ranks

LONG = {"train.epochs": 100}  # not over before the fault has shown
BLAME = r"error: ranks? \d.* on host node\d .*; committed checkpoints are kept, and the same command continues"
GIVES_NODE_UP_S = 20  # a little more than SlurmdTimeout in slurm.conf.in


@pytest.fixture(scope="module")
def undisturbed(fork_server: ForkServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of the same run on two ranks of this machine without SLURM."""
    return result(local_ranks(fork_server, 2, tmp_path_factory.mktemp("local"), photos, **LONG))


@pytest.fixture(autouse=True)
def nothing_stays_behind(hosts: Hosts) -> Iterator[None]:
    """Once the hosts are healed no job is queued, no node drained or down, no rank alive."""
    yield
    hosts.heal()
    for job in slurm("squeue", "-h", "-o", "%i").split():
        slurm("scancel", job)
    until(lambda: not slurm("squeue", "-h"), "the queue is empty")
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


def train(live: Live, photos: Path, *arguments: object, **values: object) -> None:
    """Submit a run on two hosts, and wait until it trains."""
    live.submit(photos, *arguments, **LONG | values)
    live.until_training()


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
        return cost.tell("went on" if live.starts == 1 else "was queued again")
    (blame, *_) = [line for rank in range(2) for line in live.log(rank).splitlines() if line.startswith("error: rank")]
    hosts.heal()
    done = recolor(live.folder, "jobs", "restart", "runs/train")
    assert done.returncode == 0, done.stderr
    assert until_over(live) == "finished", live.log()
    cost.tell(f"`{blame.split(';')[0]}`; restarted")


def cut_for(seconds: float) -> Callable[[Hosts, str], None]:
    """A fault: the cable of a host is pulled for a while."""

    def cut(hosts: Hosts, node: str) -> None:
        hosts.fault(node, "cut")
        time.sleep(seconds)
        hosts.fault(node, "heal")

    return cut


def lasting(*what: object) -> Callable[[Hosts, str], None]:
    """A fault that stays until all is over."""
    name, *value = what
    return lambda hosts, node: hosts.fault(node, str(name), *value)


FAULTS = {
    "a link cut for 5 s": cut_for(5),
    "a link cut for 60 s": cut_for(60),
    "a link cut for good": lasting("cut"),
    "a host that loses all that it sends": lasting("mute"),
    "a host that loses all that it gets": lasting("deaf"),
    "30 % of the packets of a host lost": lasting("loss", 30),
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
    train(live, photos)
    cost = Cost(live, f"{fault}, rank {rank}")
    FAULTS[fault](hosts, live.history[0].nodes[rank])
    finish(live, cost, hosts)
    assert result(live.run) == undisturbed
