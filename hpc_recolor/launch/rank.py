"""A rank of a submitted job: its place in the job, the setup of its node, the record of its start and end."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.launch.job_folder import (
    IDLE_STARTS,
    Event,
    JobFolder,
    append_event,
    read_history,
    runs_of_sweep,
    timestamp,
)
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.staging import keep_caches, stage
from hpc_recolor.run_folder.checkpoints import newest_images
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder, read_config
from hpc_recolor.runtime.code_version import code_commit
from hpc_recolor.runtime.distributed import adopt, use_network
from hpc_recolor.runtime.errors import EarlyEndError, UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, FAILED
from hpc_recolor.runtime.json_text import parse_json
from hpc_recolor.runtime.launcher_environment import SCRIPT_BEGAN
from hpc_recolor.runtime.output import lossy_output
from hpc_recolor.runtime.process import age_s
from hpc_recolor.runtime.signals import StopRequest


@dataclass(frozen=True)
class RankInfo:
    """A rank's place in its job. job: as users name it, ARRAY_TASK in an array; restart: how often it was requeued."""

    job: str
    restart: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: tuple[str, ...]
    cluster: str

    @classmethod
    def from_environment(cls) -> "RankInfo":
        """Reads the environment variables of SLURM or of submitit's local controller."""
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
        """Whether it is rank 0, which records starts and ends."""
        return self.rank == 0

    @property
    def node(self) -> str:
        """Name of this node."""
        return os.environ.get("SLURMD_NODENAME", socket.gethostname())

    def address(self) -> str:
        """Address of rank 0's node. Falls back to SLURM_LAUNCH_NODE_IPADDR if DNS cannot resolve the node."""
        if self.cluster == "local":
            return "127.0.0.1"
        try:
            return str(socket.getaddrinfo(self.nodes[0], None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def run(path: Path, request: StopRequest) -> int:
    """Train the run of a job folder, or of this array task of a sweep's. Returns the exit code."""
    info = RankInfo.from_environment()
    adopt(info.rank, info.size, info.local_rank, info.local_size, info.address(), f"{info.job} {info.restart}")
    with lossy_output():
        return cli.exit_code(lambda: _run(JobFolder(path), info, request), distributed=True)


def _run(submitted: JobFolder, info: RankInfo, request: StopRequest) -> int:
    submitted.check()
    folder = _folder_of_task(submitted)
    folder.check()
    print(
        f"=== hpc_recolor job {info.job}, restart {info.restart}, rank {info.rank} of {info.size} on {info.node}, "
        f"{timestamp()}, commit {code_commit() or 'unknown'}",
        flush=True,
    )
    options = _read_options(folder)
    run = RunFolder(folder.path.parent)
    if info.is_main:
        history, images = read_history(folder), newest_images(run)
        append_event(folder, _event(info, "start", images=images))
    code, reason, end = FAILED, "", None
    try:
        if info.is_main:
            _check_progress(history, info.job, images)
        keep_caches(options.scratch)
        use_network(options.network_interface)
        config = stage(read_config(folder.config, run), options.scratch, info.local_rank == 0)
        end = _train(config, request)
        code, reason = (end.exit_code, str(end)) if end else (0, "finished")
    except BaseException as error:
        code = BAD_INPUT if isinstance(error, UserError) else code
        reason = _one_line(error)
        raise
    finally:
        if info.is_main:
            append_event(folder, _event(info, "end", exit_code=code, reason=reason))
    return _request_requeue(submitted, folder, info, end) if end and end.requeue else code


def _check_progress(history: Sequence[Event], job: str, images: int) -> None:
    """Raises UserError if the last starts of a job, too, were at as many images as this one."""
    starts = [event.images for event in history if event.kind == "start" and event.job == job][-IDLE_STARTS:]
    if starts == [images] * IDLE_STARTS:
        problem = f"was started {IDLE_STARTS} times at {images} images, and saved none more"
        fix = "see its logs; give it more --time or memory, or a smaller checkpoint.every_images"
        raise UserError(f"job {job}", problem, fix)


def _train(config: Config, request: StopRequest) -> EarlyEndError | None:
    """Returns how the run ended before its end, if it did."""
    from hpc_recolor.training import trainer  # imports torch, which reads the cache variables
    from hpc_recolor.training.time_ledger import process_age_s

    try:
        trainer.train(config, request, max(process_age_s(), _script_age_s()))
    except EarlyEndError as end:
        return end
    return None


def _script_age_s() -> float:
    """Since when the script of this rank's job has been running on this host [s]; 0 where none has said so."""
    try:
        return age_s(int(os.environ[SCRIPT_BEGAN]))
    except (KeyError, ValueError):
        return 0.0


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _request_requeue(submitted: JobFolder, folder: JobFolder, info: RankInfo, end: EarlyEndError) -> int:
    """Ask the script that started the ranks to requeue the job once all of them have exited. Returns the exit code.

    A rank that ends alone fails, so that srun ends those that wait for it.
    """
    if info.cluster == "local":
        return LOCAL_REQUEUE_RETURN_CODE
    if info.is_main or end.alone:
        write_atomically(submitted.requeue(info.job, info.restart), str(folder.path.parent).encode())
    return end.exit_code if end.alone else 0


def _folder_of_task(submitted: JobFolder) -> JobFolder:
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task is None or not submitted.tasks.exists():
        return submitted
    return JobFolder.of(runs_of_sweep(submitted)[int(task)])


def _read_options(folder: JobFolder) -> JobOptions:
    try:
        return JobOptions.model_validate(parse_json(folder.options.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(str(folder.options), f"cannot be read ({error})", "submit the run again") from None


def _event(info: RankInfo, kind: str, **more: object) -> Event:
    return Event.now(kind, info.job, info.restart, info.size, info.nodes, **more)
