"""A rank of a submitted job: who it is, what it prepares on its node, how it tells its end."""

import json
import os
import socket
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import submitit
from pydantic import ValidationError
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.launch.job_folder import Event, JobFolder, append_event
from hpc_recolor.launch.profile import Options
from hpc_recolor.launch.staging import keep_caches, stage
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.code_version import code_commit
from hpc_recolor.runtime.distributed import adopt
from hpc_recolor.runtime.errors import EarlyEndError, UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, FAILED
from hpc_recolor.runtime.signals import StopRequest

# Below the kernel's own range for outgoing connections, from 32768 on.
FIRST_PORT, PORTS = 10_000, 22_000


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its job. job: as users name it, ARRAY_TASK in an array; restart: how often it was queued
    again."""

    job: str
    restart: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: tuple[str, ...]
    cluster: str

    @classmethod
    def here(cls) -> "Place":
        """By what SLURM, or submitit's local controller, says in the environment."""
        job = submitit.JobEnvironment()
        return cls(
            job=job.job_id,
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            rank=job.global_rank,
            size=job.num_tasks,
            local_rank=job.local_rank,
            local_size=job.num_tasks // job.num_nodes,
            nodes=tuple(job.hostnames),
            cluster=job.cluster,
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def port(self) -> int:
        """The same on all ranks without a word between them, another one for each job and start."""
        return FIRST_PORT + zlib.crc32(f"{self.job} {self.restart}".encode()) % PORTS

    @property
    def node(self) -> str:
        return os.environ.get("SLURMD_NODENAME", socket.gethostname())

    def address(self) -> str:
        """Of rank 0's node. SLURM knows nodes that name servers do not: then where srun was started, which is there."""
        if self.cluster == "local":
            return "127.0.0.1"
        try:
            return str(socket.getaddrinfo(self.nodes[0], None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def run(path: Path, request: StopRequest) -> int:
    """Train the run that a job folder, or this task of a sweep's, holds. Returns the exit code."""
    here = Place.here()
    adopt(here.rank, here.size, here.local_rank, here.local_size, here.address(), here.port)
    return cli.exit_code(lambda: _run(JobFolder(path), here, request))


def _run(submitted: JobFolder, here: Place, request: StopRequest) -> int:
    submitted.check()
    folder = _folder_of_task(submitted)
    folder.check()
    print(
        f"=== hpc_recolor job {here.job}, restart {here.restart}, rank {here.rank} of {here.size} on {here.node}, "
        f"{_now()}, commit {code_commit() or 'unknown'}",
        flush=True,
    )
    options = _read_options(folder)
    if here.is_main:
        append_event(folder, _event(here, "start"))
    code, reason, requeue = FAILED, "", False
    try:
        keep_caches(options.scratch)
        _use_network(options.network_interface)
        config = stage(load_config(folder.config, {}), options.scratch, here.local_rank == 0)
        code, reason, requeue = _train(config, request)
    except BaseException as error:
        code = BAD_INPUT if isinstance(error, UserError) else code
        reason = " ".join(f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".split())
        raise
    finally:
        if here.is_main:
            append_event(folder, _event(here, "end", exit_code=code, reason=reason))
    return _ask_for_requeue(submitted, folder, here) if requeue else code


def _train(config: Config, request: StopRequest) -> tuple[int, str, bool]:
    """Exit code, reason, and whether the job is to be queued again."""
    from hpc_recolor.training import trainer  # imports torch, after the caches have their places

    try:
        trainer.train(config, request)
    except EarlyEndError as end:
        return end.exit_code, str(end), end.requeue
    return 0, "finished", False


def _ask_for_requeue(submitted: JobFolder, folder: JobFolder, here: Place) -> int:
    """The script that started the ranks queues the job again, once all of them have left in peace."""
    if here.cluster == "local":
        return LOCAL_REQUEUE_RETURN_CODE
    if here.is_main:
        write_atomically(submitted.requeue(here.job, here.restart), str(folder.path.parent).encode())
    return 0


def _folder_of_task(submitted: JobFolder) -> JobFolder:
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task is None or not submitted.tasks.exists():
        return submitted
    return JobFolder.of(RunFolder(Path(json.loads(submitted.tasks.read_text())[int(task)])))


def _read_options(folder: JobFolder) -> Options:
    try:
        return Options.model_validate_json(folder.options.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder.options} cannot be read ({error}); submit the run again") from None


def _use_network(interface: str | None) -> None:
    if interface:
        os.environ |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}


def _event(here: Place, kind: str, **more: object) -> Event:
    fields = {"job": here.job, "restart": here.restart, "time": _now(), "ranks": here.size, "nodes": here.nodes}
    return Event.model_validate({"kind": kind} | fields | more)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
