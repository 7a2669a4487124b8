"""Real SLURM clusters on this machine, each started once for all tests that use it."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fork_server import ForkServer
from tests.support.forked_ranks import ForkedRanks

SCRIPTS = ROOT / "slurm" / "dev_cluster"
PORTS = 7
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Hosts:
    """A cluster whose nodes are hosts. folder: the cluster's."""

    NAMES = ("node1", "node2", "node3", "node4")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fault(self, names: str, what: str, *value: object) -> None:
        """Disturb hosts, or heal them; see slurm/dev_cluster/fault."""
        script("fault", names, what, *map(str, value))

    def heal(self) -> None:
        """Undo what was done to any host; dead ones boot."""
        self.fault(",".join(self.NAMES), "heal")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cluster's folder; SLURM's commands talk to it. Without SLURM tests are skipped; in CI they fail.

    DEV_CLUSTER_HOSTS, if set, makes its nodes hosts of their own (`make survival`).
    """
    with started(tmp_path_factory.getbasetemp()) as folder:
        yield folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A cluster of four nodes, each a host of its own, until the file's tests are over."""
    if refusal := no_hosts():
        pytest.skip(refusal)
    with started(tmp_path_factory.getbasetemp(), "--hosts", "4") as folder:
        yield Hosts(folder)


@pytest.fixture(scope="session")
def forked_python(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `python` for profiles whose ranks need not import torch and the like again."""
    ranks = ForkedRanks(fork_server, tmp_path_factory.mktemp("ranks"))
    yield ranks.program
    ranks.close()


def no_hosts() -> str:
    """Why there can be no hosts on this machine; empty if there can."""
    if os.geteuid():
        return "hosts require root"
    missing = [name for name in ("unshare", "nsenter", "nft", "tc") if shutil.which(name, path=SYSTEM_PATH) is None]
    return f"hosts require {', '.join(missing)}: run slurm/dev_cluster/install" if missing else ""


@contextmanager
def started(shared: Path, *options: str) -> Iterator[Path]:
    """A cluster's folder, while it runs. shared: what its hosts need beside the code."""
    if shutil.which("slurmctld", path=SYSTEM_PATH) is None:
        message = "SLURM is not installed: run slurm/dev_cluster/install"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(tempfile.mkdtemp(prefix="cluster-"))  # paths of sockets are limited to 107 bytes
        patch.setenv("DEV_CLUSTER", str(folder))
        patch.setenv("DEV_CLUSTER_PORT", str(free_ports()))
        try:
            script("up", *options, "--share", str(shared), "--share", str(ROOT))
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield folder
        finally:
            script("down")
        assert not folder.exists()
        assert not left_behind()


def left_behind() -> list[str]:
    """Network devices and control groups of the cluster's hosts."""
    name = f"hpcr{os.environ['DEV_CLUSTER_PORT']}"
    folders = (Path("/sys/class/net"), Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/"))
    return [str(found) for folder in folders for found in folder.glob(f"{name}*")]


def script(name: str, *arguments: str) -> str:
    """Run one of the cluster's scripts. Returns its output."""
    done = subprocess.run([SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_ports() -> int:
    """The first of PORTS consecutive free ports; concurrent test runs search other ranges."""
    for first in range(16900 + os.getpid() % 1000 * PORTS, 30000, PORTS):
        try:
            for port in range(first, first + PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
