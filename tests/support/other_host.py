"""A process that moves to another host of `dev_cluster up --hosts`: into its namespaces and limits."""

import ctypes
import os
import signal
from pathlib import Path
from typing import NoReturn

# The file system last: it has a /proc of its own, in which process IDs are others.
NAMESPACES = ("ipc", "uts", "net", "pid", "mnt")
CONTROLLERS = ("cpu", "memory")
FORWARDED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1


def move_beside(pid: int) -> None:
    """Continue in a process on the host of process `pid`, if that is another than this one's.

    This process then stays behind: it forwards signals to the new one, and ends as that ends; if it is killed, so is
    the new one. To be called before this process has threads.
    """
    if _namespace(pid, "pid") == _namespace("self", "pid"):
        return
    groups = _control_groups(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until whoever is to take them is there
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    mount = descriptors.pop()
    for descriptor in descriptors:
        _enter(libc, descriptor)
    child = os.fork()  # the first process in the namespace of process IDs: one never changes its own
    if child:
        _stand_in_for(child)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _enter(libc, mount)
    for descriptor in (*descriptors, mount):
        os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _namespace(pid: int | str, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def _control_groups(pid: int) -> list[Path]:
    """The folders of the control groups that limit a process (cgroups(7)), of version 1 or 2."""
    groups = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in CONTROLLERS:
            groups.append(Path(f"/sys/fs/cgroup/{controllers}{path}"))
        elif not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            groups.append(Path(f"/sys/fs/cgroup{path}"))
    return groups


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


def _stand_in_for(child: int) -> NoReturn:
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
