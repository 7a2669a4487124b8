"""Runs ranks on this machine, under submitit's local controller, which outlives the command that starts it."""

import os
import shlex
import sys
from pathlib import Path

from submitit.local.local import start_controller

from hpc_recolor.launch.job_folder import JobFolder, Submission
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.launcher_environment import foreign_names

NO_LIMIT_MIN = 60 * 24 * 365
CONTROLLER_MODULE = b"submitit.local._local"


def start(folder: JobFolder, code: Path, options: JobOptions) -> str:
    """Start the controller in a session of its own, so that Ctrl-C here does not reach the ranks. Returns its pid.

    Raises UserError for more than one node.
    """
    if options.nodes > 1:
        raise UserError(f"--nodes={options.nodes}", "--cluster local has only this machine", "use --nodes 1")
    command = [options.python or sys.executable, "-u", "-m", "hpc_recolor.launch.job", str(folder.path)]
    path = os.pathsep.join([str(code), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.chdir(options.chdir or ".")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        for name in foreign_names(os.environ):
            del os.environ[name]
        os.environ |= {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        controller = start_controller(
            folder.path,
            shlex.join(command),
            tasks_per_node=options.ranks_per_node,
            cuda_devices=",".join(map(str, range(options.gpus_per_node or 0))),
            timeout_min=options.time_min or NO_LIMIT_MIN,
            signal_delay_s=options.signal_s,
            stderr_to_stdout=True,
        )
        os.write(write_end, str(controller.pid).encode())
        os._exit(0)
    os.close(write_end)
    os.wait()
    with os.fdopen(read_end) as reply:
        pid = reply.read()
    assert pid, "the controller did not start"
    return pid


def is_running(submission: Submission) -> bool:
    """Whether the controller of a local job is alive."""
    try:
        command = Path(f"/proc/{submission.job}/cmdline").read_bytes().split(b"\0")
        return CONTROLLER_MODULE in command and os.fsencode(submission.logs) in command
    except OSError:
        return False
