"""Which nodes of several are unlike the others: slower, short of something, at another time, of other versions.

Each node is compared with the median of the others, so that one bad node does not excuse itself, and must be worse by a
ratio and by more than their own scatter; or, however they scatter, by more than the 1.5th power of that ratio.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_high

# How many times the scatter of the others (the standard deviation that their median absolute deviation stands for, in
# logarithms) a node must be away from their median.
CERTAINTY = 5.0
LARGEST_RATIO_POWER = 1.5  # beyond this power of the ratio a node is bad however the others scatter
FEWEST_THAT_SCATTER = 3  # of two values the deviations are equal, whatever they are
DEVIATION_OF_MAD = 1.4826  # of a normal distribution
# Of a clock, beyond the time that asking took: servers of time keep clocks within milliseconds.
CLOCK_S = 5.0
# Logarithms need a number above 0.
NOTHING = 1e-9
# What nodes may differ in, as while a cluster is updated; shown, and no reason to leave a node out.
MAY_DIFFER = ("kernel",)

SHARED_FIX = "no fault of single nodes: see the disk, network or options that they share"
NETWORK_FIX = "see network_interface and what lies between the nodes"
SILENT = "see whether it answers ssh and what its slurmd logs; leave it out"
SLOW = "see what else runs on it and whether it is throttled, or leave it out"


@dataclass(frozen=True)
class Metric:
    """What is measured on each node, under `heading` in the table.

    ratio: a node that is so many times worse than the median of the others is an outlier. enough: a value at which none
    is, whatever the others have.
    """

    key: str
    heading: str
    unit: str
    ratio: float
    fix: str
    lower_is_worse: bool = True
    enough: float | None = None


PAIRS = Metric("pairs", "pairs", "MB/s", 3, "check its network cable and interface, or leave it out")
METRICS = (
    Metric("start", "start", "s", 3, "see whether it reads Python's packages slowly", lower_is_worse=False, enough=60),
    Metric("product", "product", "GFLOP/s", 1.5, SLOW),
    Metric("gpu_product", "GPU product", "TFLOP/s", 1.2, SLOW),
    Metric("decode", "decode", "images/s", 1.5, SLOW),
    Metric("memory", "memory", "GiB", 2, "see what holds its memory, or leave it out", enough=16),
    Metric("gpu_memory", "GPU memory", "GiB", 1.25, "see what holds its GPUs' memory (nvidia-smi), or leave it out"),
    Metric("scratch", "scratch", "MB/s", 5, "see what else writes there, or leave it out", enough=50),
    Metric("scratch_free", "free", "GiB", 10, "remove what fills its scratch, or leave it out", enough=10),
    Metric("shared", "shared", "MB/s", 5, "see how it reaches the shared disk, or leave it out", enough=20),
    PAIRS,
)


@dataclass
class NodeReport:
    """What a node has answered. silence: why it has not, or no longer.

    failures: by part of the trial, what went wrong. values: by key of METRICS; cleared: keys in which it was slow in
    some of its tries at most, not in all. versions: by name. clock_s: how far its clock is ahead of the asking one's;
    clock_error_s: how much of that may be the time that asking took.
    """

    node: str
    silence: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    clock_s: float | None = None
    clock_error_s: float = 0.0


@dataclass(frozen=True)
class Outlier:
    """A node that is unlike the others, why, and what to do.

    part: of the trial, or key of the metric; None where nodes differ from each other, so that several may.
    """

    node: str
    problem: str
    fix: str
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.node}: {self.problem}; {self.fix}"


# Rates of all-reduces between two nodes [MB/s]; 0: it failed.
Pairs = Mapping[tuple[str, str], float]


def metrics_of(memory_gib: float | None) -> tuple[Metric, ...]:
    """METRICS, for a job that needs so much memory of a node, where that is known."""
    return tuple(
        replace(metric, enough=memory_gib or metric.enough) if metric.key == "memory" else metric for metric in METRICS
    )


def find_outliers(reports: Sequence[NodeReport], pairs: Pairs, metrics: Sequence[Metric] = METRICS) -> list[Outlier]:
    """The nodes that are bad or unlike the others, node by node; one may have several faults, none that most have.

    Of two nodes that differ in a version or in time it is not known which is wrong: both are found.
    """
    found = _all_faults(reports, pairs, metrics)
    shared = _shared_by_most(found, len(reports))
    return [outlier for outlier in found if outlier.part not in shared]


def shared_faults(
    reports: Sequence[NodeReport], pairs: Pairs, metrics: Sequence[Metric] = METRICS, pair_failure: str = ""
) -> list[str]:
    """A line for each fault that most nodes share, and for all-reduces where most reach no other node: it lies in what
    they share, as a disk, a network or the job's own options, and is no fault of a node.

    pair_failure: what an all-reduce of a pair said that failed.
    """
    found = _all_faults(reports, pairs, metrics)
    lines = []
    for part in _shared_by_most(found, len(reports)):
        problems = {outlier.node: outlier.problem for outlier in found if outlier.part == part}
        lines.append(f"{len(problems)} of {len(reports)} nodes: {next(iter(problems.values()))}; {SHARED_FIX}")
    if _is_network_lost(pairs):
        failed = sum(not rate for rate in pairs.values())
        reason = f" ({pair_failure})" if pair_failure else ""
        lines.append(f"{failed} of {len(pairs)} pairs of nodes: their all-reduce failed{reason}; {NETWORK_FIX}")
    return lines


def may_exclude(bad: Collection[object], nodes: Collection[object]) -> bool:
    """Whether the job may be queued again without the bad ones of its nodes: where they are more than half, the fault
    is more likely one of the job.
    """
    return 0 < 2 * len(bad) <= len(nodes)


def _shared_by_most(found: Sequence[Outlier], nodes: int) -> list[str]:
    """Parts in which most nodes, and two or more, have a fault."""
    counts = Counter(part for part, _ in {(outlier.part, outlier.node): None for outlier in found} if part)
    return [part for part, count in counts.items() if count > max(1, nodes / 2)]


def _is_network_lost(pairs: Pairs) -> bool:
    """Whether most nodes have reached none of those that they were paired with."""
    nodes = {node for pair in pairs for node in pair}
    reached = {node for pair, rate in pairs.items() if rate for node in pair}
    return len(nodes) > 2 * len(reached)


def _all_faults(reports: Sequence[NodeReport], pairs: Pairs, metrics: Sequence[Metric]) -> list[Outlier]:
    return [
        outlier
        for report in reports
        for outlier in (
            *_broken(report),
            *_slow(report, reports, metrics),
            *_badly_connected(report.node, pairs),
            *_at_another_time(report, reports),
            *_of_other_versions(report, reports),
        )
    ]


def slow_metrics(report: NodeReport, reports: Sequence[NodeReport], metrics: Sequence[Metric] = METRICS) -> set[str]:
    """Keys of the metrics in which a node is worse than the others."""
    return {metric.key for metric in metrics if _slowness(report, reports, metric)}


def is_any_slowly_connected(nodes: Sequence[str], pairs: Pairs) -> bool:
    """Whether a node's all-reduces are slower than those of the others, but come to an end."""
    return any(rate_of(node, pairs) and _badly_connected(node, pairs) for node in nodes)


def failed_pairs(pairs: Pairs, found: Sequence[Outlier]) -> list[tuple[str, str]]:
    """Pairs of nodes whose all-reduce failed though neither was found, nor most nodes reach none."""
    if _is_network_lost(pairs):
        return []
    nodes = {outlier.node for outlier in found}
    return [pair for pair, rate in pairs.items() if not rate and not nodes.intersection(pair)]


def rate_of(node: str, pairs: Pairs) -> float | None:
    """The median rate of a node's all-reduces with others [MB/s]; None if there was none.

    Of two, the better: where one of two others is bad, that one explains it.
    """
    rates = [rate for pair, rate in pairs.items() if node in pair]
    return median_high(rates) if rates else None


def _broken(report: NodeReport) -> list[Outlier]:
    if report.silence:
        return [Outlier(report.node, report.silence, SILENT, "silence")]
    return [
        Outlier(report.node, f"{part}: {failure}", "repair it, or leave it out", part)
        for part, failure in report.failures.items()
    ]


def _slow(report: NodeReport, reports: Sequence[NodeReport], metrics: Sequence[Metric]) -> list[Outlier]:
    found = [_slowness(report, reports, metric) for metric in metrics if metric.key not in report.cleared]
    return [outlier for outlier in found if outlier]


def _slowness(report: NodeReport, reports: Sequence[NodeReport], metric: Metric) -> Outlier | None:
    value = report.values.get(metric.key)
    others = [other.values[metric.key] for other in _others(report, reports) if metric.key in other.values]
    if value is None or not _is_worse(value, others, metric):
        return None
    return _beside(report.node, value, median(others), metric)


def _badly_connected(node: str, pairs: Pairs) -> list[Outlier]:
    own, others = rate_of(node, pairs), [rate for pair, rate in pairs.items() if node not in pair]
    if own is None:
        return []
    return [_beside(node, own, median(others), PAIRS)] if _is_worse(own, others, PAIRS) else []


def _is_worse(value: float, others: Sequence[float], metric: Metric) -> bool:
    if not others or (metric.enough is not None and _worseness(value, metric) <= _worseness(metric.enough, metric)):
        return False
    worseness = [_worseness(other, metric) for other in others]
    usual, scatter = median(worseness), 0.0
    if len(others) >= FEWEST_THAT_SCATTER:
        scatter = DEVIATION_OF_MAD * median(abs(one - usual) for one in worseness)
    least = math.log(metric.ratio)
    return _worseness(value, metric) - usual > min(max(least, CERTAINTY * scatter), LARGEST_RATIO_POWER * least)


def _worseness(value: float, metric: Metric) -> float:
    logarithm = math.log(max(value, NOTHING))
    return -logarithm if metric.lower_is_worse else logarithm


def _beside(node: str, value: float, usual: float, metric: Metric) -> Outlier:
    return Outlier(node, f"{metric.heading} {value:.3g} {metric.unit}, others {usual:.3g}", metric.fix, metric.key)


def _at_another_time(report: NodeReport, reports: Sequence[NodeReport]) -> list[Outlier]:
    others = [other.clock_s for other in _others(report, reports) if other.clock_s is not None]
    if report.clock_s is None or not others:
        return []
    far = [other for other in others if abs(report.clock_s - other) > CLOCK_S + report.clock_error_s]
    if 2 * len(far) <= len(others):
        return []
    ahead_s = report.clock_s - median(far)
    side = "ahead of" if ahead_s > 0 else "behind"
    return [Outlier(report.node, f"its clock is {abs(ahead_s):.0f} s {side} the others", "set it (chronyc makestep)")]


def _of_other_versions(report: NodeReport, reports: Sequence[NodeReport]) -> list[Outlier]:
    found = []
    for name, version in report.versions.items():
        others = Counter(other.versions.get(name, "") for other in _others(report, reports) if other.versions)
        same = others[version]
        if name not in MAY_DIFFER and others.total() - same > same:
            usual = others.most_common(1)[0][0] or "none"
            fix = "install the same environment on all nodes, or leave it out"
            found.append(Outlier(report.node, f"{name} {version}, others {usual}", fix))
    return found


def _others(report: NodeReport, reports: Sequence[NodeReport]) -> list[NodeReport]:
    return [other for other in reports if other.node != report.node]
