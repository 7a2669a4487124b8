"""Processes that start in milliseconds: forks of a server that has imported torch, DeepSpeed, DALI and our rooms.

`ForkServer.start` is to `subprocess.Popen([sys.executable, "-m", ...])` what a fork is to an exec: a real process with
its own pid, environment, folder, standard streams and exit, which runs a module as `__main__`. What it cannot show is
start-up: imports, and what they print, have happened in the server. Command lines in /proc are the server's.

As a program it is the server; it takes requests from the socket of the number in its command line.
"""

import atexit
import gc
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tests.support.other_host import move_beside

ROOT = Path(__file__).parents[2]

# What is slow to import and often needed. No module that is run as __main__, which runpy warns about, and not pytest:
# cyclopts behaves differently where that is imported.
PRELOADED = (
    *("numpy", "torch", "torch.utils.tensorboard", "triton", "recolor_kernels", "deepspeed", "nvidia.dali.fn"),
    *("nvidia.dali.plugin.pytorch", "matplotlib.pyplot", "torchmetrics", "torchvision", "submitit"),
    *("hpc_recolor.training.trainer", "hpc_recolor.evaluation.evaluation", "hpc_recolor.reporting.page"),
    *("hpc_recolor.data.pack", "hpc_recolor.diagnostics.machine", "tests.support.training_runs"),
)
REQUEST_BYTES = 1 << 20
# In the environment of a fork: how much longer its fsync takes [s].
SLOW_DISK_S = "TESTS_SLOW_DISK_S"


class Process:
    """A forked process, used like `subprocess.Popen`. It is killed when this is left or dropped."""

    def __init__(self, arguments: Sequence[str], control: socket.socket) -> None:
        self.args, self._control = list(arguments), control
        self.returncode: int | None = None
        self.pid = int(control.recv(64))

    def poll(self) -> int | None:
        """The exit code, -number for a signal, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutExpired after so many seconds."""
        if self.returncode is None:
            self._control.settimeout(timeout)
            try:
                status = self._control.recv(64)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            assert status, "the fork server has ended"
            self.returncode = int(status)
            self._control.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()


class ForkServer:
    """The server's process, seen from the tests. It ends, and all that it started, when this is closed or dropped."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(
        self,
        module: str,
        arguments: Sequence[object],
        cwd: Path,
        env: Mapping[str, str],
        stdout: Any = subprocess.DEVNULL,
        stderr: Any = subprocess.DEVNULL,
        beside: int | None = None,
    ) -> Process:
        """`python -m module arguments...` in that folder and environment.

        stdout, stderr: files, sockets or descriptors; DEVNULL; stderr may be STDOUT. beside: a process whose host it
        runs on, if that is another one (tests/support/other_host.py).
        """
        argv = [module, *map(str, arguments)]
        request = json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env), "beside": beside}).encode()
        control, theirs = socket.socketpair()
        with theirs, open(os.devnull, "r+b", buffering=0) as nothing:
            out, err = (nothing if file == subprocess.DEVNULL else file for file in (stdout, stderr))
            streams = [nothing, out, out if err == subprocess.STDOUT else err]
            files = [file if isinstance(file, int) else file.fileno() for file in streams]
            socket.send_fds(self._channel, [request], [theirs.fileno(), *files])
        return Process(argv, control)

    def close(self) -> None:
        self._channel.close()
        self._process.wait(60)


class Server:
    """Forks on request, and reports how its children end."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.selector = selectors.DefaultSelector()
        self.selector.register(channel, selectors.EVENT_READ)
        self.children: dict[int, tuple[int, socket.socket]] = {}  # by pid: its descriptor, and who waits for it

    def serve(self) -> dict[str, Any]:
        """Until the client is gone. Returns in the children alone: what each is to do."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.channel:
                    request = self._fork()
                    if request is not None:
                        return request
                elif key.data in self.children:
                    self._end(key.data)

    def _fork(self) -> dict[str, Any] | None:
        message, files, _, _ = socket.recv_fds(self.channel, REQUEST_BYTES, 4)
        if not message:
            self._leave()
        control, streams = socket.socket(fileno=files[0]), files[1:]
        pid = os.fork()
        if not pid:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
        for stream in streams:
            os.close(stream)
        if not pid:
            self._forget(control)
            request: dict[str, Any] = json.loads(message)
            return request
        descriptor = os.pidfd_open(pid)
        self.children[pid] = descriptor, control
        self.selector.register(descriptor, selectors.EVENT_READ, pid)
        self.selector.register(control, selectors.EVENT_READ, pid)
        control.sendall(f"{pid}".encode())
        return None

    def _forget(self, control: socket.socket) -> None:
        """Close, in a child, what is the server's."""
        os.setsid()
        self.selector.close()
        for descriptor, other in self.children.values():
            os.close(descriptor)
            other.close()
        control.close()
        self.channel.close()

    def _end(self, pid: int) -> None:
        """It has ended, or nobody waits for it any more."""
        descriptor, control = self.children.pop(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)  # of no effect on one that has ended
        _, status = os.waitpid(pid, 0)
        for file in (descriptor, control):
            self.selector.unregister(file)
        os.close(descriptor)
        with control, suppress(OSError):
            control.sendall(f"{os.waitstatus_to_exitcode(status)}".encode())

    def _leave(self) -> NoReturn:
        for pid in list(self.children):
            self._end(pid)
        os._exit(0)


def preload() -> dict[str, str]:
    """Import everything. Returns what that set in the environment."""
    before = dict(os.environ)
    for name in PRELOADED:
        import_module(name)
    # The child's choice, like the folder's and the threads'.
    setattr(import_module("deepspeed.accelerator.real_accelerator"), "ds_accelerator", None)  # noqa: B010
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    assert len(threads) == 1, f"a fork would lose threads: {threads}"
    gc.collect()
    gc.freeze()
    return {key: value for key, value in os.environ.items() if before.get(key) != value}


def slow_down_disk(seconds: float) -> None:
    """Let every fsync take so much longer, as on a busy file server: a test can then act during a save."""
    fsync = os.fsync

    def slow_fsync(file: int) -> None:
        time.sleep(seconds)
        fsync(file)

    os.fsync = slow_fsync  # type: ignore[assignment]


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    found = preload()
    request = Server(channel).serve()
    if request["beside"]:
        move_beside(request["beside"])
    os.environ.clear()
    os.environ.update(found | request["env"])
    time.tzset()
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    if SLOW_DISK_S in os.environ:
        slow_down_disk(float(os.environ[SLOW_DISK_S]))
    os.chdir(request["cwd"])
    module, *arguments = request["argv"]
    sys.argv = [module, *arguments]
    sys.path[0] = request["cwd"]
    import_module("numpy").random.seed()  # random does so by itself
    random.seed()
    code = exit_code(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
    # What the interpreter does at its end, but without taking thousands of modules apart.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def exit_code(program: Callable[[], object]) -> int:
    """Run a program; what it raises is printed as the interpreter would."""
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
