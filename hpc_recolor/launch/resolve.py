"""What one submission asks for: the command line, over the profile, over what the cluster says of its partition."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpc_recolor.launch import slurm_query
from hpc_recolor.launch.job_states import is_known
from hpc_recolor.launch.profile import Options, Profile
from hpc_recolor.launch.slurm_query import JobRequest, Partition
from hpc_recolor.runtime.errors import UserError

# SLURM looks at time limits every now and then, and so sends its signal a minute too early.
EARLY_S = 60


def resolve(profile: Profile, given: Mapping[str, object], on: str) -> Options:
    """The options of a submission on "slurm" or "local".

    given: what was said on the command line, None where nothing was. Raises UserError if options are illegal, or if the
    cluster cannot fulfil them.
    """
    said = {key: value for key, value in given.items() if value is not None}
    try:
        options = Options.model_validate(profile.model_dump() | said | {"cluster": on})
    except ValidationError as error:
        raise UserError("; ".join(f"--{_explain(detail)}" for detail in error.errors())) from None
    time_min = slurm_query.parse_time(options.time) if options.time else None
    if on == "slurm":
        options, time_min = _ask(options, time_min)
    elif options.gpus_per_node is None:
        options = options.model_copy(update={"gpus_per_node": _gpus_here()})
    if time_min is not None and time_min * 60 < options.signal_s + EARLY_S:
        raise UserError(
            f"--time={options.time or slurm_query.format_time(time_min)}: ranks are told to save {options.signal_s} s "
            "before the end, or a minute earlier; use more time, or a smaller signal_s in the profile"
        )
    return options.model_copy(update={"time_min": time_min, "ranks_per_node": max(1, options.gpus_per_node or 0)})


def _explain(detail: ErrorDetails) -> str:
    key, message = str(detail["loc"][0]).replace("_", "-"), detail["msg"]
    return f"{key}={detail['input']!r}: {message[0].lower()}{message[1:]}"


def _gpus_here() -> int:
    """NVIDIA's of this machine, without a word to the driver."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _ask(options: Options, time_min: int | None) -> tuple[Options, int | None]:
    """Fill in what the partition says. Raises UserError if it cannot do what is asked."""
    asked = JobRequest(
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
    partition = slurm_query.check(asked)
    if options.after and not is_known(options.after):
        raise UserError(f"--after={options.after}: SLURM knows no such job; leave it out if that job is over")
    gpus = partition.gpus_per_node if options.gpus_per_node is None else options.gpus_per_node
    found = {
        "partition": partition.name,
        "gpus_per_node": gpus,
        "cpus_per_node": options.cpus_per_node or _fair_share(partition, gpus),
    }
    return options.model_copy(update=found), time_min or partition.default_time_min or partition.max_time_min


def _fair_share(partition: Partition, gpus: int) -> int:
    """Of a node's CPUs: as many as go with that many of its GPUs, and all where they compute."""
    if not (gpus and partition.gpus_per_node):
        return partition.cpus_per_node
    return max(gpus, partition.cpus_per_node * gpus // partition.gpus_per_node)
