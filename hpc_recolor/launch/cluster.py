"""What SLURM says of partitions, of this user's accounts and of jobs, asked with its own commands (20.11 and newer)."""

import difflib
import getpass
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from hpc_recolor.errors import UserError

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
# As squeue(1) calls jobs that will not run again; "CANCELLED by 0" too.
OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "REVOKED"),
    "PREEMPTED",
)
UNITS_MIN = {1: (1,), 2: (1, 1 / 60), 3: (60, 1, 1 / 60)}  # of MINUTES, M:S, H:M:S
DAYS_UNITS_MIN = (60, 1, 1 / 60)  # behind D-
NO_VALUE = ("", "N/A", "(null)", "UNLIMITED", "infinite", "NONE", "n/a")


@dataclass(frozen=True)
class Partition:
    """Nodes that may be asked for together. Times are None where there is no limit or default; cpus, memory, GPUs are
    what each node has, of the smallest; nodes: all that are not down or drained."""

    name: str
    is_default: bool
    is_up: bool
    max_time_min: int | None
    default_time_min: int | None
    nodes: int
    cpus_per_node: int
    memory_mib_per_node: int
    gpus_per_node: int
    features: frozenset[str]


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


@dataclass(frozen=True)
class JobState:
    """A job by SLURM's words. reason: why it waits; time_left_s: until its limit; start_time: when it began, or may."""

    job: str
    state: str
    reason: str | None = None
    nodes: str = ""
    time_left_s: int | None = None
    start_time: str | None = None
    restarts: int | None = None
    exit_code: int | None = None


def run(command: Sequence[str], timeout_s: float = 30) -> str:
    """What one of SLURM's programs prints, errors too. Raises UserError if it is not there, or fails."""
    environment = os.environ | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
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
    rows: dict[str, list[list[str]]] = {}
    for line in run(["sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%L|%D|%T|%c|%m|%G|%f"]).splitlines():
        fields = line.split("|")
        if len(fields) == 10:
            rows.setdefault(fields[0], []).append(fields)
    if not rows:
        raise UserError("SLURM has no partition that this user may see; ask who runs the cluster")
    return [_partition(name, found) for name, found in rows.items()]


def accounts() -> list[str] | None:
    """The accounts that this user may charge; None where SLURM keeps no accounts."""
    return _associated("account")


def qualities() -> list[str] | None:
    """The qualities of service that this user may ask for; None where SLURM keeps no accounts."""
    found = _associated("qos")
    return sorted({name for names in found for name in names.split(",")}) if found else None


def check(request: JobRequest) -> Partition:
    """The partition that a request would run in. Raises UserError, with what is legal, if it cannot."""
    partition = _find_partition(request.partition)
    too_much = [
        ("--nodes", request.nodes, partition.nodes, "usable nodes"),
        ("--gpus-per-node", request.gpus_per_node, partition.gpus_per_node, "GPUs a node"),
        ("cpus_per_node", request.cpus_per_node, partition.cpus_per_node, "CPUs a node"),
        ("memory_gb", request.memory_gb, partition.memory_mib_per_node / 1024, "GB a node"),
    ]
    for key, asked, there, what in too_much:
        if asked is not None and asked > there:
            raise UserError(f"{key}={asked}: partition {partition.name} has {there:g} {what}; ask for that or less")
    longest = partition.max_time_min
    if request.time_min and longest and request.time_min > longest:
        raise UserError(
            f"--time={format_time(request.time_min)}: partition {partition.name} allows {format_time(longest)} at a "
            "time; a longer run is queued again and goes on, so ask for that or less"
        )
    _check_features(request.constraint, partition)
    _check_name("--account", request.account, accounts())
    _check_name("--qos", request.qos, qualities())
    return partition


def job_states(jobs: Sequence[str]) -> dict[str, JobState]:
    """What SLURM knows of jobs, by id; tasks of arrays are `12_3`. Those that it does not know are left out."""
    if not jobs:
        return {}
    queued = {state.job: state for state in _queued() if state.job in jobs}
    # Only accounting has exit codes, and is a little late.
    asked = sorted(job for job in set(jobs) if job not in queued or queued[job].state.startswith(OVER))
    ended = _ended(asked) if asked else {}
    return ended | queued | {job: state for job, state in ended.items() if state.state.startswith(OVER)}


def is_known(job: str) -> bool:
    """Whether SLURM still knows a job, anybody's, waiting, running or over not long ago."""
    return subprocess.run(["squeue", "--jobs", job], capture_output=True, timeout=30).returncode == 0


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


def array_tasks(job: str) -> Iterator[str]:
    """The ids behind squeue's `12_[0-3,7%2]`; any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not match:
        yield job
        return
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        yield from (f"{match[1]}_{number}" for number in range(int(first), int(last or first) + 1))


def _partition(name: str, rows: Sequence[Sequence[str]]) -> Partition:
    """Of sinfo's rows, one for each kind and state of its nodes."""
    _, up, longest, default, *_ = rows[0]
    usable = [row for row in rows if not re.match(r"down|drain|fail|unknown|maint|reboot|power", row[5])]
    smallest = usable or rows
    return Partition(
        name=name.rstrip("*"),
        is_default=name.endswith("*"),
        is_up=up == "up",
        max_time_min=_limit(longest),
        default_time_min=_limit(default),
        nodes=sum(int(row[4]) for row in usable),
        cpus_per_node=min(int(row[6].rstrip("+")) for row in smallest),
        memory_mib_per_node=min(int(row[7].rstrip("+")) for row in smallest),
        gpus_per_node=min(gpus(row[8]) for row in smallest),
        features=frozenset(feature for row in rows for feature in row[9].split(",") if feature not in NO_VALUE),
    )


def _limit(text: str) -> int | None:
    return None if text in NO_VALUE else parse_time(text)


def _associated(field: str) -> list[str] | None:
    """A field of all this user's associations; None where SLURM keeps none."""
    try:
        rows = run(["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", f"format={field}"]).splitlines()
    except UserError:
        return None
    return sorted({row for row in rows if row}) or None


def _find_partition(name: str | None) -> Partition:
    known = {partition.name: partition for partition in partitions()}
    listed = ", ".join(known)
    if name is None:
        default = next((partition for partition in known.values() if partition.is_default), None)
        if not default:
            raise UserError(f"--partition: SLURM has no default one; give one of {listed}")
        return default
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UserError(
            f"--partition={name}: no such partition{f', did you mean {near[0]}?' if near else ''}; there are {listed}"
        )
    if not known[name].is_up:
        raise UserError(f"--partition={name} is closed at present; there are {listed}")
    return known[name]


def _check_features(constraint: str | None, partition: Partition) -> None:
    """Only of plain names with & and |; sbatch knows the rest."""
    if constraint and re.fullmatch(r"[\w.-]+([&|][\w.-]+)*", constraint):
        for feature in re.split(r"[&|]", constraint):
            _check_name("--constraint", feature, sorted(partition.features))


def _check_name(key: str, name: str | None, legal: Iterable[str] | None) -> None:
    if name and legal is not None and name not in legal:
        raise UserError(f"{key}={name} is not to be had; there are {', '.join(legal) or 'none'}")


def _queued() -> Iterator[JobState]:
    """This user's jobs that are not long over."""
    fields = "%i|%T|%r|%N|%L|%S"
    user = getpass.getuser()
    for line in run(["squeue", "--noheader", f"--user={user}", "--states=all", f"--format={fields}"]).splitlines():
        job, state, reason, nodes, left, start = line.split("|")
        for task in array_tasks(job):
            yield JobState(task, state, reason, nodes, _seconds(left), None if start in NO_VALUE else start)


def _ended(jobs: Sequence[str]) -> dict[str, JobState]:
    try:
        lines = run(["sacct", "-nPX", "-j", ",".join(jobs), "-o", "JobID,State,NodeList,Start,ExitCode"]).splitlines()
    except UserError:
        return {}  # SLURM keeps no accounts
    states: dict[str, JobState] = {}
    for line in lines:
        job, state, nodes, start, code = line.split("|")
        known = JobState(job, state, None, nodes, None, start, None, int(code.split(":")[0]))
        states |= {task: known for task in array_tasks(job) if task in jobs}
    return states


def _seconds(text: str) -> int | None:
    """Of squeue's time left: D-H:M:S, H:M:S or M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
