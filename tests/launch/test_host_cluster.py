"""`dev_cluster up --hosts 4`: each node is a host of its own, and each fault does what it says until it is healed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import SCRIPTS, Hosts
from tests.support.live import slurm, until

NAMES = Hosts.NAMES


@pytest.fixture(autouse=True)
def healed(hosts: Hosts) -> Iterator[None]:
    yield
    hosts.heal()


def on(hosts: Hosts, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host, under its limits."""
    limited = (
        'for group in cpu memory; do echo $$ >/sys/fs/cgroup/$group/hpcr*"$0"*/"$1"/cgroup.procs; done 2>/dev/null; '
    )
    enter = 'exec nsenter --target "$2" --mount --uts --ipc --net --pid -- "${@:3}"'
    pid = (hosts.folder / f"host-{name}.pid").read_text().strip()
    port = os.environ["DEV_CLUSTER_PORT"]
    return subprocess.run(
        ["bash", "-c", limited + enter, port, name, pid, *command], capture_output=True, text=True, timeout=60
    )


def reaches(hosts: Hosts, one: str, other: str) -> bool:
    """Whether a host can connect to the slurmd of another."""
    port = int(os.environ["DEV_CLUSTER_PORT"]) + 3
    return on(hosts, one, "timeout", "1", "bash", "-c", f"</dev/tcp/{other}/{port}").returncode == 0


def hardware_address(hosts: Hosts, name: str) -> str:
    (interface,) = json.loads(on(hosts, name, "ip", "-json", "link", "show", "eth0").stdout)
    return str(interface["address"])


def links(hosts: Hosts) -> set[str]:
    """Pairs of hosts of which the first reaches the second, of the first three."""
    return {f"{a[4:]}{b[4:]}" for a in NAMES[:3] for b in NAMES[:3] if a != b and reaches(hosts, a, b)}


ALL = {"12", "13", "21", "23", "31", "32"}


def test_each_node_has_a_name_an_address_processes_and_a_tmp_of_its_own(hosts: Hosts) -> None:
    told = {}
    for name in NAMES:
        told[name] = on(
            hosts, name, "sh", "-c", "touch /tmp/mine-$(hostname); hostname; hostname -i; ls /tmp; pidof slurmd"
        )
    names, addresses = zip(*(done.stdout.split()[:2] for done in told.values()), strict=True)
    assert names == NAMES
    assert len(set(addresses)) == 4
    assert all(address.startswith("198.18.") for address in addresses)
    assert all([line for line in done.stdout.split() if "mine" in line] == [f"mine-{n}"] for n, done in told.items())
    assert all(int(done.stdout.split()[-1]) < 1000 for done in told.values())
    assert links(hosts) == ALL


def test_nothing_leaves_the_machine(hosts: Hosts) -> None:
    routes = on(hosts, "node1", "ip", "route").stdout.splitlines()
    assert [line.split()[0].rpartition(".")[0][:7] for line in routes] == ["198.18."]


@pytest.mark.parametrize(
    ("names", "what", "left"),
    [
        ("node1", ("cut",), {"23", "32"}),
        ("node1", ("mute",), {"23", "32"}),
        ("node1", ("deaf",), {"23", "32"}),
        ("node1,node2", ("split",), {"12", "21"}),
        ("node1", ("loss", 100), {"23", "32"}),
    ],
)
def test_a_network_fails_where_it_is_told_to_and_is_healed(
    names: str, what: tuple[str, ...], left: set[str], hosts: Hosts
) -> None:
    hosts.fault(names, *what)
    assert links(hosts) == left
    hosts.fault(names, "heal")
    assert links(hosts) == ALL


def test_a_host_has_no_more_memory_than_it_is_given(hosts: Hosts) -> None:
    take = (sys.executable, "-c", "bytearray(200 << 20)")
    assert on(hosts, "node1", *take).returncode == 0
    hosts.fault("node1", "memory", 60)
    assert on(hosts, "node1", *take).returncode == -9
    assert on(hosts, "node2", *take).returncode == 0


def test_a_slow_host_gets_its_share_of_the_processors(hosts: Hosts) -> None:
    """A tenth of one processor, whatever else runs."""
    hosts.fault("node1", "slow", 0.1 / (os.cpu_count() or 1))
    code = "import time; a, b = time.process_time(), time.monotonic()\nwhile time.monotonic() < b + 1: pass\n"
    done = on(hosts, "node1", sys.executable, "-c", f"{code}print(time.process_time() - a)")
    assert float(done.stdout) < 0.3


def test_a_full_scratch_is_full_on_that_host_alone(hosts: Hosts) -> None:
    hosts.fault("node1", "fill")
    write = ("sh", "-c", "echo content >/tmp/scratch/file")
    assert on(hosts, "node1", *write).returncode != 0
    assert on(hosts, "node2", *write).returncode == 0


def test_the_clock_of_jobs_is_off_and_time_passes_as_always(hosts: Hosts) -> None:
    hosts.fault("node2", "clock", 3600)
    ahead = [float(slurm("srun", "-w", name, "date", "+%s")) - time.time() for name in NAMES[:2]]
    assert abs(ahead[0]) < 60
    assert abs(ahead[1] - 3600) < 60


def test_a_dead_host_is_gone_and_boots_again(hosts: Hosts) -> None:
    process = Path(f"/proc/{(hosts.folder / 'node2.pid').read_text().strip()}")
    assert process.exists()
    before = hardware_address(hosts, "node2")
    hosts.fault("node2", "kill")
    until(lambda: not process.exists(), "all of the host is gone")
    assert not reaches(hosts, "node1", "node2")
    hosts.heal()
    until(lambda: set(slurm("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "all nodes are idle")
    # Others remember it for a while, and would not reach the host at another.
    assert hardware_address(hosts, "node2") == before
    assert links(hosts) == ALL


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("node9", "cut"), "node9 is none of node1 node2 node3 node4"),
        (("node1", "loss"), "loss needs a number: loss 30"),
        (("node1", "break"), "no such fault: break"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], line: str, hosts: Hosts) -> None:
    done = subprocess.run([SCRIPTS / "fault", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--hosts", "two"), "--hosts=two: use 1 to 99"),
        (("--nodes", "4"), "--nodes: use --hosts N, --rate RATE, --share DIR"),
        (("--hosts",), "--hosts needs a value"),
        (
            ("--hosts", "2"),
            "--hosts=2: this cluster has 4 hosts: stop it first (python -m hpc_recolor.dev_cluster down)",
        ),
    ],
)
def test_hosts_that_cannot_be_are_refused_in_one_line(options: tuple[str, ...], line: str, hosts: Hosts) -> None:
    done = subprocess.run([SCRIPTS / "up", *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


def test_hosts_need_root(hosts: Hosts) -> None:
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "bash", str(SCRIPTS / "up"), "--hosts", "4"]
    done = subprocess.run(nobody, capture_output=True, text=True)
    line = "error: --hosts requires root: leave it out, and all nodes share one address\n"
    assert (done.returncode, done.stderr) == (2, line)
