"""Partitions of the cluster, and the accounts and qualities of service that this user may use."""

import getpass
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hpc_recolor.launch.slurm_command import NO_VALUE, parse_rows, run_command
from hpc_recolor.launch.slurm_time import parse_time
from hpc_recolor.runtime.errors import UserError

SINFO_FORMAT = "%P|%a|%l|%L|%D|%T|%c|%m|%G|%f"
# Node states of sinfo(1). Nodes that are powered down, reboot, are in maintenance or have not registered yet will
# accept jobs later.
UNUSABLE = re.compile("down|drain|fail|error|inval|future")


@dataclass(frozen=True)
class NodeGroup:
    """Identical nodes of a partition: their number, and what each of them has."""

    count: int
    cpus: int
    memory_mib: int
    gpus: int
    features: frozenset[str]


@dataclass(frozen=True)
class Partition:
    """A partition.

    max_time_min, default_time_min: None where there is no limit or default. all_nodes: includes unusable nodes, which
    groups does not. features: of all nodes.
    """

    name: str
    is_default: bool
    is_up: bool
    max_time_min: int | None
    default_time_min: int | None
    all_nodes: int
    features: frozenset[str]
    groups: tuple[NodeGroup, ...]

    @property
    def nodes(self) -> int:
        """Number of usable nodes."""
        return sum(group.count for group in self.groups)

    @property
    def cpus_per_node(self) -> int:
        """CPUs of the smallest node; 0 without a usable node."""
        return min((group.cpus for group in self.groups), default=0)

    @property
    def memory_mib_per_node(self) -> int:
        """Memory of the smallest node [MiB]; 0 without a usable node."""
        return min((group.memory_mib for group in self.groups), default=0)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of the node with the fewest; 0 without a usable node."""
        return min((group.gpus for group in self.groups), default=0)


def partitions() -> list[Partition]:
    """All partitions. Raises UserError if SLURM is not installed or does not respond."""
    found = parse_partitions(run_command(["sinfo", "--noheader", "--exact", f"--format={SINFO_FORMAT}"]))
    if not found:
        raise UserError("SLURM", "no partition is visible to this user", "ask the cluster's administrators")
    return found


def parse_partitions(text: str) -> list[Partition]:
    """Partitions from sinfo's output, which has a row for each kind and state of a partition's nodes."""
    by_name: dict[str, list[list[str]]] = {}
    for row in parse_rows(text, 10):
        by_name.setdefault(row[0], []).append(row)
    return [_partition(name, rows) for name, rows in by_name.items()]


def usable_nodes(partition: str | None) -> set[str]:
    """Names of the nodes that take jobs, now or later; None: of any partition."""
    where = [f"--partition={partition}"] if partition else []
    rows = parse_rows(run_command(["sinfo", "--noheader", "--Node", *where, "--format=%N|%T"]), 2)
    return {name for name, state in rows if not UNUSABLE.match(state)}


def accounts() -> list[str] | None:
    """The accounts that this user may charge; None where SLURM keeps no accounting."""
    return sorted({account for account, _ in _associations()}) or None


def qualities(account: str | None = None) -> list[str] | None:
    """The qualities of service of one account, or of all of this user's; None where SLURM keeps no accounting."""
    rows = [names for name, names in _associations() if account in (None, name)]
    return sorted({name for names in rows for name in names.split(",") if name}) or None


def count_gpus(gres: str) -> int:
    """Number of GPUs in sinfo's GRES of a node: 4 in `gpu:a100:4(S:0-1),shard:8`."""
    return sum(int(found[1]) for found in re.finditer(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    _, up, max_time, default_time, *_ = rows[0]
    groups = [_node_group(row) for row in rows]
    return Partition(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        is_up=up == "up",
        max_time_min=_limit_min(max_time),
        default_time_min=_limit_min(default_time),
        all_nodes=sum(group.count for group in groups),
        features=frozenset().union(*(group.features for group in groups)),
        groups=_merge_equal(group for group, row in zip(groups, rows, strict=True) if not UNUSABLE.match(row[5])),
    )


def _merge_equal(groups: Iterable[NodeGroup]) -> tuple[NodeGroup, ...]:
    """One group for identical nodes, whatever their states."""
    counts: Counter[NodeGroup] = Counter()
    for group in groups:
        counts[replace(group, count=0)] += group.count
    return tuple(replace(group, count=count) for group, count in counts.items())


def _node_group(row: Sequence[str]) -> NodeGroup:
    count, _, cpus, memory_mib, gres, features = row[4:]
    return NodeGroup(
        count=int(count),
        cpus=int(cpus.rstrip("+")),
        memory_mib=int(memory_mib.rstrip("+")),
        gpus=count_gpus(gres),
        features=frozenset(feature for feature in features.split(",") if feature not in NO_VALUE),
    )


def _limit_min(text: str) -> int | None:
    return None if text in NO_VALUE else parse_time(text)


def _user() -> str:
    """The user's name, or number where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _associations() -> list[list[str]]:
    """Account and comma-separated qualities of service of each association; empty without accounting."""
    user = f"user={_user()}"
    try:
        return parse_rows(run_command(["sacctmgr", "-nP", "show", "assoc", user, "format=account,qos"]), 2)
    except UserError:
        return []
