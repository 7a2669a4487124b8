"""A real SLURM cluster on this machine, started once for all tests that use it."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fork_server import ForkServer
from tests.support.forked_ranks import ForkedRanks

SCRIPTS = ROOT / "slurm" / "dev_cluster"
PORTS = 7


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """The cluster's folder; SLURM's commands talk to it. Without SLURM tests are skipped; in CI they fail."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        message = "SLURM is not installed: run slurm/dev_cluster/install"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(tempfile.mkdtemp(prefix="cluster-"))  # paths of sockets are limited to 107 bytes
        patch.setenv("DEV_CLUSTER", str(folder))
        patch.setenv("DEV_CLUSTER_PORT", str(free_ports()))
        script("up")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        script("down")
        assert not folder.exists()


@pytest.fixture(scope="session")
def forked_python(fork_server: ForkServer) -> Iterator[Path]:
    """A `python` for profiles whose ranks need not import torch and the like again."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks = ForkedRanks(fork_server, Path(folder))
        yield ranks.program
        ranks.close()


def script(name: str) -> str:
    """Run one of the cluster's scripts. Returns its output."""
    done = subprocess.run([SCRIPTS / name], capture_output=True, text=True, timeout=180)
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
