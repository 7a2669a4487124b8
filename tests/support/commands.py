"""Modules run as programs, as users start them or as forks of the fork server, on one rank or several."""

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import IO

import pytest

from hpc_recolor import cli
from tests.support.fork_server import ForkServer, Process

# For commands that hang: a busy machine may take minutes.
DEADLINE_S = 1200.0
# From SIGTERM to SIGKILL, as under torchrun.
TERMINATION_S = 30.0
# What this process got from a launcher, or set for DeepSpeed.
NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "DS_ACCELERATOR")

Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    """This process's, without what makes it a rank."""
    return {key: value for key, value in os.environ.items() if key not in NOT_INHERITED} | {"COLUMNS": "200"}


def launched(ranks: int) -> list[str]:
    """How python starts a module on so many ranks: directly, or under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [sys.executable, *(launcher if ranks > 1 else []), "-m"]


def run_here(folder: Path, module: str, arguments: Sequence[object]) -> Done:
    """The command of a module in this process. Returns the exit code and what Python code printed."""
    out, err = io.StringIO(), io.StringIO()
    app = import_module(module).app
    argv = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch, chdir(folder), redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "200")
        for key in ("RANK", "WORLD_SIZE"):
            patch.delenv(key, raising=False)
        code = cli.run(app, argv)
    return subprocess.CompletedProcess([module, *argv], code, out.getvalue(), err.getvalue())


def run_fresh(folder: Path, module: str, arguments: Sequence[object], ranks: int = 1) -> Done:
    """`python -m module ...` in new interpreters, on several ranks under torchrun."""
    return subprocess.run(
        [*launched(ranks), module, *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def run_forked(server: ForkServer, folder: Path, module: str, arguments: Sequence[object], ranks: int = 1) -> Done:
    """The same in forks. Like torchrun, it ends all ranks once one has failed, and then returns 1."""
    with ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        started = start_ranks(server, folder, module, arguments, ranks, out, err)
        processes = [stack.enter_context(process) for process in started]
        _wait(processes)
        codes = [process.wait() for process in processes]
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    code = codes[0] if ranks == 1 else int(any(codes))
    return subprocess.CompletedProcess([module, *map(str, arguments)], code, *printed)


def start_ranks(
    server: ForkServer,
    folder: Path,
    module: str,
    arguments: Sequence[object],
    ranks: int,
    out: IO[str],
    err: IO[str],
) -> list[Process]:
    """One fork for each rank, in the environment that torchrun would give it; no rank at all for one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        own: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        env = environment() | ({key: str(value) for key, value in own.items()} if ranks > 1 else {})
        started.append(server.start(module, arguments, folder, env, out, err))
    return started


def _wait(processes: list[Process]) -> None:
    """Until all have ended; SIGTERM once one has failed, SIGKILL if that does not help."""
    deadline_s = time.monotonic() + DEADLINE_S
    terminated = False
    while None in [process.poll() for process in processes]:
        if time.monotonic() > deadline_s:
            for process in processes:
                process.kill()
            assert terminated, f"not done after {DEADLINE_S} s"
        elif any(process.returncode for process in processes) and not terminated:
            terminated, deadline_s = True, time.monotonic() + TERMINATION_S
            for process in processes:
                process.terminate()
        time.sleep(0.01)
