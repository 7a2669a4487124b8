"""What SLURM says of partitions and of this user's accounts, asked with its own commands (20.11 and newer)."""

import difflib
import getpass
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from hpc_recolor.runtime.errors import UserError

NO_SLURM = (
    "there is no SLURM on this machine ({program} is not there): log in to the cluster, use --cluster local, or try "
    "slurm/dev_cluster/up"
)
# What SLURM says, and what to do about it.
HINTS = (
    ("Unable to contact slurm controller", "slurmctld does not answer; try again later, or ask who runs the cluster"),
    ("Connection refused", "slurmctld does not answer; try again later, or ask who runs the cluster"),
    ("Could not establish a configuration source", "SLURM_CONF names no cluster; log in to it, or set it"),
    ("Invalid account", "--account or --qos is not yours there; `sacctmgr show assoc user=$USER` lists what is"),
    ("Invalid qos", "--qos is not yours; `sacctmgr show assoc user=$USER format=qos` lists what is"),
    ("invalid partition", "--partition is not there; `sinfo` lists them"),
    ("Requested time limit is invalid", "--time is longer than the partition allows; `sinfo` says how long"),
    ("Requested node configuration is not available", "no node has so many GPUs, CPUs or so much memory; see `sinfo`"),
    ("Node count specification invalid", "--nodes is more than the partition has; see `sinfo`"),
    ("Invalid feature", "--constraint names what no node has; `sinfo -o '%P %f'` lists features"),
    ("Invalid job id", "the job is over, or was never there"),
)
UNITS_MIN = {1: (1,), 2: (1, 1 / 60), 3: (60, 1, 1 / 60)}  # of MINUTES, M:S, H:M:S
DAYS_UNITS_MIN = (60, 1, 1 / 60)  # behind D-
NOTHING = ("", "N/A", "(null)", "UNLIMITED", "infinite", "NONE", "n/a", "None assigned", "Unknown", "None")
SINFO = "%P|%a|%l|%L|%D|%T|%c|%m|%G|%f"
# Of sinfo's states. Nodes that sleep, restart, are in maintenance or have not reported yet take jobs in time.
UNUSABLE = re.compile("down|drain|fail|error|inval|future")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike: how many, and what each has."""

    count: int
    cpus: int
    memory_mib: int
    gpus: int
    features: frozenset[str]


@dataclass(frozen=True)
class Partition:
    """Nodes that may be asked for together. Times are None where there is no limit or default; kinds: of the nodes that
    are not down or drained, and all_nodes counts the others too; features: of all nodes."""

    name: str
    is_default: bool
    is_up: bool
    max_time_min: int | None
    default_time_min: int | None
    all_nodes: int
    features: frozenset[str]
    kinds: tuple[Nodes, ...]

    @property
    def nodes(self) -> int:
        """How many are usable."""
        return sum(kind.count for kind in self.kinds)

    @property
    def cpus_per_node(self) -> int:
        """Of the smallest node, as are the next two; 0 without a usable node."""
        return min((kind.cpus for kind in self.kinds), default=0)

    @property
    def memory_mib_per_node(self) -> int:
        return min((kind.memory_mib for kind in self.kinds), default=0)

    @property
    def gpus_per_node(self) -> int:
        return min((kind.gpus for kind in self.kinds), default=0)


@dataclass(frozen=True)
class JobRequest:
    """What a job wants. partition: None is the default one."""

    partition: str | None
    nodes: int
    gpus_per_node: int
    cpus_per_node: int | None
    memory_gb: float | None
    time_min: int | None
    account: str | None
    qos: str | None
    constraint: str | None


def run(command: Sequence[str], timeout_s: float = 30) -> str:
    """What one of SLURM's programs prints, warnings too. Raises UserError if it is not there, or fails."""
    environment = os.environ | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    environment["SLURM_BITSTR_LEN"] = "0"  # else long lists of an array's tasks are cut off
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise UserError(NO_SLURM.format(program=command[0])) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM: {command[0]} has not answered for {timeout_s:.0f} s; try again later") from None
    if done.returncode:
        raise UserError(f"SLURM: {slurm_error(done.stderr or done.stdout)}")
    return done.stdout + done.stderr


def slurm_error(text: str) -> str:
    """What SLURM's programs complain of, as one clause, with what to do about it where that is known."""
    lines = [re.sub(r"^(\w+): (error|fatal): ", "", line).strip() for line in text.splitlines()]
    said = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"
    hint = next((hint for words, hint in HINTS if words.lower() in said.lower()), None)
    return f"{said}: {hint}" if hint else said


def partitions() -> list[Partition]:
    """All partitions. Raises UserError if SLURM is not there or does not answer."""
    found = parse_partitions(run(["sinfo", "--noheader", "--exact", f"--format={SINFO}"]))
    if not found:
        raise UserError("SLURM has no partition that this user may see; ask who runs the cluster")
    return found


def parse_partitions(text: str) -> list[Partition]:
    """Of what sinfo prints: a row for each kind and state of a partition's nodes."""
    found: dict[str, list[list[str]]] = {}
    for row in rows(text, 10):
        found.setdefault(row[0], []).append(row)
    return [_partition(name, rows) for name, rows in found.items()]


def accounts() -> list[str] | None:
    """The accounts that this user may charge; None where SLURM keeps no accounts."""
    return sorted({account for account, _ in _associations()}) or None


def qualities(account: str | None = None) -> list[str] | None:
    """The qualities of service that this user may ask for, by any account or by one; None where SLURM keeps none."""
    rows = [names for name, names in _associations() if account in (None, name)]
    return sorted({name for names in rows for name in names.split(",") if name}) or None


def check(request: JobRequest) -> Partition:
    """The partition that a request would run in, with only those nodes that have what it asks for.

    Raises UserError, with what is legal, if it cannot.
    """
    partition = fit(request, _find_partition(request.partition))
    _check_name("--account", request.account, accounts())
    _check_name("--qos", request.qos, qualities(request.account))
    return partition


def fit(request: JobRequest, partition: Partition) -> Partition:
    """The partition without the nodes that lack something. Raises UserError if too few have all that is asked for."""
    _check_sizes(request, partition)
    longest = partition.max_time_min
    if request.time_min and longest and request.time_min > longest:
        raise UserError(
            f"--time={format_time(request.time_min)}: partition {partition.name} allows {format_time(longest)} at a "
            "time; a longer run is queued again and goes on, so ask for that or less"
        )
    for feature in _features(request.constraint):
        _check_name("--constraint", feature, sorted(partition.features))
    narrow = replace(partition, kinds=tuple(kind for kind in partition.kinds if _has(kind, request)))
    if request.nodes > narrow.nodes:
        raise UserError(
            f"--nodes={request.nodes}: partition {partition.name} has {narrow.nodes} usable nodes with "
            f"{_each_node(request)}; ask for less"
        )
    return narrow


def parse_time(text: str) -> int:
    """Minutes, rounded up, of SLURM's spellings: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError for others."""
    match = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,8}(?::\d{1,4}){0,2})", text, re.ASCII)
    if not match:
        raise UserError(f"--time={text}: write minutes, H:M:S or D-H:M:S")
    days, rest = match[1], [int(part) for part in match[2].split(":")]
    units = DAYS_UNITS_MIN if days else UNITS_MIN[len(rest)]
    minutes = ceil(int(days or 0) * 24 * 60 + sum(part * unit for part, unit in zip(rest, units, strict=False)) - 1e-9)
    if minutes < 1:
        raise UserError(f"--time={text}: use a minute or more")
    return minutes


def format_time(minutes: int) -> str:
    """As SLURM writes it: D-HH:MM:SS or H:MM:SS."""
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def gpus(gres: str) -> int:
    """How many GPUs a node has, by sinfo's GRES: `gpu:a100:4(S:0-1),shard:8`."""
    return sum(int(found[1]) for found in re.finditer(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def rows(text: str, fields: int) -> list[list[str]]:
    """What a program printed in that many fields; its warnings have fewer."""
    rows = [line.split("|") for line in text.splitlines()]
    return [row for row in rows if len(row) == fields]


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    _, up, longest, default, *_ = rows[0]
    kinds = [_kind(row) for row in rows]
    return Partition(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        is_up=up == "up",
        max_time_min=_limit(longest),
        default_time_min=_limit(default),
        all_nodes=sum(kind.count for kind in kinds),
        features=frozenset().union(*(kind.features for kind in kinds)),
        kinds=_alike(kind for kind, row in zip(kinds, rows, strict=True) if not UNUSABLE.match(row[5])),
    )


def _alike(kinds: Iterable[Nodes]) -> tuple[Nodes, ...]:
    """Each kind once, whatever states its nodes are in."""
    counts: Counter[Nodes] = Counter()
    for kind in kinds:
        counts[replace(kind, count=0)] += kind.count
    return tuple(replace(kind, count=count) for kind, count in counts.items())


def _kind(row: Sequence[str]) -> Nodes:
    count, _, cpus, memory_mib, gres, features = row[4:]
    return Nodes(
        count=int(count),
        cpus=int(cpus.rstrip("+")),
        memory_mib=int(memory_mib.rstrip("+")),
        gpus=gpus(gres),
        features=frozenset(feature for feature in features.split(",") if feature not in NOTHING),
    )


def _limit(text: str) -> int | None:
    return None if text in NOTHING else parse_time(text)


def _associations() -> list[list[str]]:
    """Accounts of this user, each with its qualities of service; none where SLURM keeps no accounts."""
    user = f"user={getpass.getuser()}"
    try:
        return rows(run(["sacctmgr", "-nP", "show", "assoc", user, "format=account,qos"]), 2)
    except UserError:
        return []


def _find_partition(name: str | None) -> Partition:
    known = {partition.name: partition for partition in partitions()}
    name = name or next((partition.name for partition in known.values() if partition.is_default), None)
    if name is None:
        raise UserError(f"--partition: SLURM has no default one; give one of {', '.join(known)}")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"--partition={name}: no such partition{guess}; there are {', '.join(known)}")
    usable = [partition.name for partition in known.values() if partition.is_up and partition.nodes]
    if name not in usable:
        raise UserError(
            f"--partition={name}: closed, or all its nodes are down or drained; use another one "
            f"({', '.join(usable) or 'all are'}), or try again later"
        )
    return known[name]


def _check_sizes(request: JobRequest, partition: Partition) -> None:
    """Each by itself, against the largest node."""
    kinds = partition.kinds
    too_much = [
        ("--nodes", request.nodes, partition.nodes, "usable nodes"),
        ("--gpus-per-node", request.gpus_per_node, max((kind.gpus for kind in kinds), default=0), "GPUs a node"),
        ("cpus_per_node", request.cpus_per_node, max((kind.cpus for kind in kinds), default=0), "CPUs a node"),
        ("memory_gb", request.memory_gb, max((kind.memory_mib for kind in kinds), default=0) / 1024, "GB a node"),
    ]
    for key, asked, there, what in too_much:
        if asked is not None and asked > there:
            raise UserError(f"{key}={asked}: partition {partition.name} has {there:g} {what}; ask for that or less")


def _has(kind: Nodes, request: JobRequest) -> bool:
    # Where & and | are mixed one feature is enough here: sbatch knows in which order they bind.
    present = [feature in kind.features for feature in _features(request.constraint)]
    enough = any if "|" in (request.constraint or "") else all
    return (
        kind.gpus >= request.gpus_per_node
        and kind.cpus >= (request.cpus_per_node or 0)
        and kind.memory_mib >= (request.memory_gb or 0) * 1024
        and (not present or enough(present))
    )


def _each_node(request: JobRequest) -> str:
    """What it asks of each node, as flags."""
    asked = {
        "--gpus-per-node": request.gpus_per_node,
        "cpus_per_node": request.cpus_per_node,
        "memory_gb": request.memory_gb,
        "--constraint": request.constraint,
    }
    return ", ".join(f"{key}={value}" for key, value in asked.items() if value)


def _features(constraint: str | None) -> list[str]:
    """Of names with & and | alone; none of what is more than that, which sbatch knows."""
    is_plain = constraint and re.fullmatch(r"[\w.-]+([&|][\w.-]+)*", constraint)
    return re.split(r"[&|]", constraint) if constraint and is_plain else []


def _check_name(key: str, name: str | None, legal: Iterable[str] | None) -> None:
    if name and legal is not None and name not in legal:
        raise UserError(f"{key}={name} is not to be had; there are {', '.join(legal) or 'none'}")
