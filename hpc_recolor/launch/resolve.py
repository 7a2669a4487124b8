"""Options of one submission: the command line, over the profile, over SBATCH_*, over the defaults of the partition."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpc_recolor.launch import job_request
from hpc_recolor.launch.job_request import JobRequest
from hpc_recolor.launch.job_states import is_known
from hpc_recolor.launch.profile import JobOptions, Profile
from hpc_recolor.launch.slurm_query import Partition
from hpc_recolor.launch.slurm_time import format_time, parse_time
from hpc_recolor.runtime.errors import UserError

# SLURM checks time limits only every 30 to 60 s, so it may send its signal a minute early.
EARLY_S = 60
# sbatch's own variables, for what neither the command line nor the profile says.
VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time": "SBATCH_TIMELIMIT",
}


def resolve(profile: Profile, given: Mapping[str, object], cluster: str, ask: bool = True) -> JobOptions:
    """The options of a submission to cluster "slurm" or "local".

    given: flags of the command line, None where one was left out. ask: SLURM, what it has, and to complete them; else
    they are taken as they are. Raises UserError if options are invalid, or if the cluster cannot satisfy them.
    """
    flags = {key: value for key, value in given.items() if value is not None}
    chosen = profile.model_dump(exclude_none=True) | flags | {"cluster": cluster}
    try:
        options = JobOptions.model_validate(of_environment(cluster) | chosen)
    except ValidationError as error:
        problems = "; ".join(f"--{_explain(detail)}" for detail in error.errors())
        raise UserError("command line", problems, "see --help") from None
    time_min = parse_time(options.time) if options.time else None
    if cluster == "slurm" and ask:
        options, time_min = _complete(options, time_min)
    elif cluster == "local" and options.gpus_per_node is None:
        options = options.model_copy(update={"gpus_per_node": _local_gpus()})
    if time_min is not None and time_min * 60 < options.signal_s + EARLY_S:
        raise UserError(
            f"--time={options.time or format_time(time_min)}",
            f"ranks save {options.signal_s} s before the limit, or up to a minute earlier",
            "use more time, or a smaller signal_s in the profile",
        )
    return options.model_copy(update={"time_min": time_min, "ranks_per_node": max(1, options.gpus_per_node or 0)})


def of_environment(cluster: str) -> dict[str, str]:
    """What sbatch's own variables say."""
    return {key: os.environ[name] for key, name in VARIABLES.items() if cluster == "slurm" and name in os.environ}


def _explain(detail: ErrorDetails) -> str:
    key, message = str(detail["loc"][0]).replace("_", "-"), detail["msg"]
    return f"{key}={detail['input']!r}: {message[0].lower()}{message[1:]}"


def _local_gpus() -> int:
    """Number of NVIDIA GPUs, read from /proc; the driver is not loaded."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _complete(options: JobOptions, time_min: int | None) -> tuple[JobOptions, int | None]:
    """Options and time limit [minutes] completed from the partition. Raises UserError if it cannot satisfy them."""
    request = JobRequest(
        partition=options.partition,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node or 0,
        cpus_per_node=options.cpus_per_node,
        memory_gb=options.memory_gb,
        time_min=time_min,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
    )
    partition = job_request.check(request)
    if options.after and not is_known(options.after):
        raise UserError(f"--after={options.after}", "unknown to SLURM", "leave it out if that job has ended")
    gpus = partition.gpus_per_node if options.gpus_per_node is None else options.gpus_per_node
    found = {
        "partition": partition.name,
        "gpus_per_node": gpus,
        "cpus_per_node": options.cpus_per_node or _fair_share(partition, gpus),
    }
    return options.model_copy(update=found), time_min or partition.default_time_min or partition.max_time_min


def _fair_share(partition: Partition, gpus: int) -> int:
    """CPUs of a node in proportion to the GPUs used of it; all of them for a job without GPUs."""
    if not (gpus and partition.gpus_per_node):
        return partition.cpus_per_node
    return max(gpus, partition.cpus_per_node * gpus // partition.gpus_per_node)
