"""`python -m hpc_recolor.dev_cluster install | up | status | fault | down`: a real SLURM of four nodes here."""

import subprocess
import sys
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.runtime.packaged import DEV_CLUSTER, packaged

app = cli.command("dev_cluster")

Options = Annotated[str, Parameter(allow_leading_hyphen=True, help="Passed on to the script.")]


@app.command
def install(*options: Options) -> int:
    """Install SLURM and what it needs, on Debian or Ubuntu, as root or with sudo; once. Starts nothing."""
    return _run("install", *options)


@app.command
def up(*options: Options) -> int:
    """Start the cluster, or what of it does not run, and print the line that makes a shell use it.

    eval "$(python -m hpc_recolor.dev_cluster up)"

    With --hosts 4, as root, each node is a host of its own, with its own address, that `fault` can disturb; see
    slurm/README.md. DEV_CLUSTER names the folder of all its files, DEV_CLUSTER_PORT the first of the seven ports that
    it listens on.
    """
    return _run("up", *options)


@app.command
def status(*options: Options) -> int:
    """Show its daemons, nodes and jobs. The exit code is 1 if a daemon does not run."""
    return _run("status", *options)


@app.command
def fault(hosts: Annotated[str, Parameter(name="HOST,...", help="Hosts.")], *what: Options) -> int:
    """Disturb hosts of the cluster that `up --hosts` started: cut, heal, loss 30, split, slow 0.05, kill and others.

    Without more than their names it lists what it can do.
    """
    return _run("fault", hosts, *what)


@app.command
def down(*options: Options) -> int:
    """Stop the cluster, with its jobs, and remove its folder."""
    return _run("down", *options)


def _run(script: str, *options: str) -> int:
    # Through bash: an installer may have dropped the executable bits.
    return subprocess.run(["bash", packaged(DEV_CLUSTER) / script, *options]).returncode


if __name__ == "__main__":
    sys.exit(cli.run(app))
