"""`python -m hpc_recolor.dev_cluster install | up | status | down`: a real SLURM of four nodes on this machine."""

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

    DEV_CLUSTER names the folder of all its files, DEV_CLUSTER_PORT the first of the seven ports that it listens on.
    """
    return _run("up", *options)


@app.command
def status(*options: Options) -> int:
    """Show its daemons, nodes and jobs. The exit code is 1 if a daemon does not run."""
    return _run("status", *options)


@app.command
def down(*options: Options) -> int:
    """Stop the cluster, with its jobs, and remove its folder."""
    return _run("down", *options)


def _run(script: str, *options: str) -> int:
    # Through bash: an installer may have dropped the executable bits.
    return subprocess.run(["bash", packaged(DEV_CLUSTER) / script, *options]).returncode


if __name__ == "__main__":
    sys.exit(cli.run(app))
