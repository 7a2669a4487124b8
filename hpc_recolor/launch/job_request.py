"""What a job asks for, checked against what the cluster has before anything is submitted."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpc_recolor.launch import slurm_query
from hpc_recolor.launch.slurm_query import NodeGroup, Partition
from hpc_recolor.launch.slurm_time import format_time
from hpc_recolor.runtime.errors import UserError


@dataclass(frozen=True)
class JobRequest:
    """Resources of a job. None: not requested; of partition: the default one."""

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    memory_gb: float | None = None
    time_min: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None


def check(request: JobRequest) -> Partition:
    """The partition that a request would run in, with only those nodes that satisfy it.

    Raises UserError, with the legal values, if there is none.
    """
    partition = fit(request, _find_partition(request.partition))
    _check_name("--account", request.account, slurm_query.accounts())
    _check_name("--qos", request.qos, slurm_query.qualities(request.account))
    return partition


def fit(request: JobRequest, partition: Partition) -> Partition:
    """The partition with only those nodes that satisfy the request. Raises UserError if there are too few."""
    _check_sizes(request, partition)
    longest = partition.max_time_min
    if request.time_min and longest and request.time_min > longest:
        raise UserError(
            f"--time={format_time(request.time_min)}",
            f"partition {partition.name} allows {format_time(longest)} at a time",
            "use that or less: a longer run is requeued and continues",
        )
    for feature in _features(request.constraint):
        _check_name("--constraint", feature, sorted(partition.features))
    narrow = replace(partition, groups=tuple(group for group in partition.groups if _satisfies(group, request)))
    if request.nodes > narrow.nodes:
        raise UserError(
            f"--nodes={request.nodes}",
            f"partition {partition.name} has {narrow.nodes} usable nodes with {_per_node_flags(request)}",
            "ask for less",
        )
    return narrow


def _find_partition(name: str | None) -> Partition:
    known = {partition.name: partition for partition in slurm_query.partitions()}
    name = name or next((partition.name for partition in known.values() if partition.is_default), None)
    if name is None:
        raise UserError("--partition", "SLURM has no default partition", f"use one of {', '.join(known)}")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"--partition={name}", f"no such partition{guess}", f"use one of {', '.join(known)}")
    usable = [partition.name for partition in known.values() if partition.is_up and partition.nodes]
    if name not in usable:
        others = f"use another one ({', '.join(usable)}), or " if usable else ""
        raise UserError(
            f"--partition={name}", "closed, or all its nodes are down or drained", f"{others}try again later"
        )
    return known[name]


def _check_sizes(request: JobRequest, partition: Partition) -> None:
    """Checks each size by itself, against the largest node."""
    groups = partition.groups
    most_memory_gb = max((group.memory_mib for group in groups), default=0) / 1024
    limits = [
        ("--nodes", request.nodes, partition.nodes, "usable nodes"),
        ("--gpus-per-node", request.gpus_per_node, max((group.gpus for group in groups), default=0), "GPUs a node"),
        ("cpus_per_node", request.cpus_per_node, max((group.cpus for group in groups), default=0), "CPUs a node"),
        ("memory_gb", request.memory_gb, most_memory_gb, "GB a node"),
    ]
    for key, asked, available, what in limits:
        if asked is not None and asked > available:
            raise UserError(
                f"{key}={asked}", f"partition {partition.name} has {available:g} {what}", "ask for that or less"
            )


def _satisfies(group: NodeGroup, request: JobRequest) -> bool:
    # Where & and | are mixed one feature is enough here; sbatch knows their precedence.
    present = [feature in group.features for feature in _features(request.constraint)]
    enough = any if "|" in (request.constraint or "") else all
    return (
        group.gpus >= request.gpus_per_node
        and group.cpus >= (request.cpus_per_node or 0)
        and group.memory_mib >= (request.memory_gb or 0) * 1024
        and (not present or enough(present))
    )


def _per_node_flags(request: JobRequest) -> str:
    """The per-node requirements, spelled as flags and keys."""
    asked = {
        "--gpus-per-node": request.gpus_per_node,
        "cpus_per_node": request.cpus_per_node,
        "memory_gb": request.memory_gb,
        "--constraint": request.constraint,
    }
    return ", ".join(f"{key}={value}" for key, value in asked.items() if value)


def _features(constraint: str | None) -> list[str]:
    """The names in a constraint that has only names, & and |; empty for any other, which is left to sbatch."""
    is_plain = constraint and re.fullmatch(r"[\w.-]+([&|][\w.-]+)*", constraint)
    return re.split(r"[&|]", constraint) if constraint and is_plain else []


def _check_name(key: str, name: str | None, legal: Iterable[str] | None) -> None:
    if name and legal is not None and name not in legal:
        names = ", ".join(legal)
        raise UserError(f"{key}={name}", "not available", f"use one of {names}" if names else "leave it out")
