"""`doctor --nodes` and `submit --preflight` on four hosts: which host is bad is found, and no other is accused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hpc_recolor.runtime.exit_codes import BAD_INPUT
from tests.launch.conftest import Hosts
from tests.support.commands import Done
from tests.support.live import Live, recolor, slurm, until

HEALTHY_TRIALS = 5
BAD = "node3"


@pytest.fixture(autouse=True)
def healed(hosts: Hosts) -> Iterator[None]:
    yield
    hosts.heal()
    for job in slurm("squeue", "-h", "-o", "%i").split():
        slurm("scancel", job)
    until(lambda: set(slurm("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "all nodes are idle")


def profile(folder: Path, **more: object) -> Path:
    file = folder / "hosts.yaml"
    file.write_text(json.dumps({"python": sys.executable, "scratch": "/tmp/scratch"} | more))
    return file


def on_scratch(folder: Path) -> Live:
    """A run whose nodes have a disk of their own."""
    (folder / "hpc_recolor.yaml").write_text("scratch: /tmp/scratch\n")
    return Live(folder)


def doctor(folder: Path) -> Done:
    return recolor(folder, "doctor", "--nodes", 4, "--profile", profile(folder))


def accused(output: str) -> set[str]:
    """The hosts that lines of errors name."""
    return set(re.findall(r"^error: (node\d): ", output, re.MULTILINE))


def on(hosts: Hosts, node: str, *command: str) -> None:
    """Run a command in the namespaces of a host."""
    pid = (hosts.folder / f"host-{node}.pid").read_text().strip()
    subprocess.run(["nsenter", "--target", pid, "--mount", "--pid", "--", *command], check=True, timeout=60)


def lasting(*what: object) -> Callable[[Hosts, Path], None]:
    name, *value = what
    return lambda hosts, folder: hosts.fault(BAD, str(name), *value)


def another_torch(hosts: Hosts, folder: Path) -> None:
    """On that host alone, torch says that it is an older one."""
    module = Path(torch.__file__).parent / "version.py"
    older = folder / "version.py"
    older.write_text(module.read_text().replace(torch.__version__, "2.1.0"))
    on(hosts, BAD, "mount", "--bind", str(older), str(module))


FAULTS: dict[str, tuple[Callable[[Hosts, Path], None], str]] = {
    "a twentieth of its processors": (lasting("slow", 0.05), r"product|start|decode|answered"),
    "a full scratch": (lasting("fill"), "scratch: .*No space left on device"),
    "30 % of its packets lost": (lasting("loss", 30), r"pairs|answered|probe"),
    "a slow network cable": (lasting("rate", "10mbit"), "pairs"),
    "a clock an hour ahead": (lasting("clock", 3600), "its clock is 3600 s ahead of the others"),
    "another torch": (another_torch, "torch 2.1.0, others "),
    "no network": (lasting("mute"), "answered|probe"),
}


@pytest.fixture
def same_torch(hosts: Hosts) -> Iterator[None]:
    yield
    module = Path(torch.__file__).parent / "version.py"
    on(hosts, BAD, "sh", "-c", f"umount '{module}' 2>/dev/null || true")


@pytest.mark.hosts
@pytest.mark.usefixtures("same_torch")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_host_is_found_and_no_other(fault: str, hosts: Hosts, tmp_path: Path) -> None:
    plant, problem = FAULTS[fault]
    plant(hosts, tmp_path)
    done = doctor(tmp_path)
    print(f"\n| {fault} | {done.stderr.strip()} |")
    assert done.returncode == BAD_INPUT, done.stdout
    assert accused(done.stderr) == {BAD}
    assert re.search(f"^error: {BAD}: .*({problem})", done.stderr, re.MULTILINE)


@pytest.mark.hosts
def test_no_healthy_host_is_accused(hosts: Hosts, tmp_path: Path) -> None:
    wrong = []
    for _ in range(HEALTHY_TRIALS):
        done = doctor(tmp_path)
        wrong += re.findall("^error: .*", done.stderr, re.MULTILINE)
    print(f"\n{len(wrong)} accusations in {4 * HEALTHY_TRIALS} trials of healthy hosts")
    assert wrong == []


def test_a_job_is_queued_again_without_a_bad_host(hosts: Hosts, tmp_path: Path, photos: Path) -> None:
    """And trains on the others."""
    hosts.fault("node1", "fill")
    live = on_scratch(tmp_path)
    live.submit(photos, "--preflight", "--exclude-bad", nodes=2)
    live.until_waiting()
    assert "error: node1: scratch: " in live.log()
    live.finish()
    starts = [event for event in live.history if event.kind == "start"]
    assert [event.nodes for event in starts] == [("node2", "node3")]
    assert "queued again without node1" in live.log()


@pytest.mark.hosts
def test_a_bad_host_ends_the_job_in_one_line_if_it_may_not_be_left_out(
    hosts: Hosts, tmp_path: Path, photos: Path
) -> None:
    hosts.fault("node1", "fill")
    live = on_scratch(tmp_path)
    live.submit(photos, "--preflight", nodes=2)
    live.until_ended()
    assert [event.kind for event in live.history] == ["end"]
    assert str(live.history[0].reason).startswith("preflight: node1: scratch: ")
    assert "node1: scratch" in recolor(tmp_path, "jobs", "status", "runs/train").stdout


@pytest.mark.hosts
def test_a_job_that_too_few_good_hosts_are_left_for_ends(hosts: Hosts, tmp_path: Path, photos: Path) -> None:
    hosts.fault("node1", "fill")
    live = on_scratch(tmp_path)
    live.submit(photos, "--preflight", "--exclude-bad", nodes=4)
    live.until_ended()
    assert "not queued again: without node1 partition main has 3 usable nodes of 4" in live.log()
