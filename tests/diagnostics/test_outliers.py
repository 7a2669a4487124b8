"""The rule that finds bad nodes: on simulated clusters that scatter as real ones, and with faults planted in them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import pytest

from hpc_recolor.diagnostics.outliers import (
    NodeReport,
    failed_pairs,
    find_outliers,
    may_exclude,
    metrics_of,
    shared_faults,
)

TRIALS = 50
# What healthy nodes have, and how far they scatter about it (standard deviation of the logarithm): processors and
# memory little, disks that others use too a lot.
USUAL = {
    "start": (8.0, 0.4),
    "product": (900.0, 0.06),
    "gpu_product": (45.0, 0.02),
    "decode": (110.0, 0.06),
    "memory": (230.0, 0.1),
    "gpu_memory": (78.0, 0.01),
    "scratch": (900.0, 0.5),
    "scratch_free": (400.0, 0.8),
    "shared": (150.0, 0.5),
}
PAIR = (1100.0, 0.15)
CLOCK_DEVIATION_S = 0.02
VERSIONS = {"python": "3.12.3", "torch": "2.9.1", "hpc_recolor": "0.1.0 (ab12cd34)", "driver": "580.65.06"}


class Cluster:
    """Nodes as a trial would describe them, with the scatter that a seed draws."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.draw = random.Random(seed)
        self.reports = {f"node{number}": self._report(f"node{number}") for number in range(1, nodes + 1)}
        self.pairs = {pair: self._near(*PAIR) for pair in combinations(self.reports, 2)}

    def _report(self, node: str) -> NodeReport:
        return NodeReport(
            node,
            values={key: self._near(*usual) for key, usual in USUAL.items()},
            versions=VERSIONS | {"kernel": self.draw.choice(["6.1.0-38", "6.1.0-40"])},
            clock_s=3600 + self.draw.gauss(0, CLOCK_DEVIATION_S),  # of all nodes beside the asking one
            clock_error_s=0.01,
        )

    def _near(self, usual: float, deviation: float) -> float:
        return usual * self.draw.lognormvariate(0, deviation)

    @property
    def found(self) -> set[str]:
        return {outlier.node for outlier in find_outliers([*self.reports.values()], self.pairs)}

    def lose(self, node: str, rate: float = 0.0) -> None:
        """Bad connections of a node to all others."""
        self.pairs |= {pair: rate for pair in self.pairs if node in pair}


def clusters(nodes: int) -> Iterator[Cluster]:
    return (Cluster(seed, nodes) for seed in range(TRIALS))


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 8, 32])
def test_no_healthy_node_is_accused(nodes: int) -> None:
    assert [cluster.found for cluster in clusters(nodes) if cluster.found] == []


def slower(key: str, times: float) -> Callable[[NodeReport], NodeReport]:
    return lambda report: replace(report, values=report.values | {key: report.values[key] / times})


FAULTS: dict[str, Callable[[NodeReport], NodeReport]] = {
    "half as fast": slower("product", 2),
    "slow at decoding": slower("decode", 2),
    "a throttled GPU": slower("gpu_product", 1.4),
    "a GPU that others use": slower("gpu_memory", 2),
    "little memory": slower("memory", 40),
    "a slow disk": slower("scratch", 200),
    "a full disk": lambda report: replace(report, failures={"scratch": "No space left on device"}),
    "hardly room": slower("scratch_free", 10_000),
    "a slow start": slower("start", 1 / 40),
    "a clock an hour ahead": lambda report: replace(report, clock_s=(report.clock_s or 0) + 3600),
    "a clock ten seconds behind": lambda report: replace(report, clock_s=(report.clock_s or 0) - 10),
    "another torch": lambda report: replace(report, versions=report.versions | {"torch": "2.8.0"}),
    "no driver": lambda report: replace(report, versions={**report.versions, "driver": "unknown"}),
    "other code": lambda report: replace(report, versions=report.versions | {"hpc_recolor": "0.1.0 (00000000)"}),
    "silence": lambda report: NodeReport(report.node, silence="has not answered for 20 s (start)"),
}


@pytest.mark.parametrize("nodes", [3, 4, 16])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_node_is_found_and_no_other(fault: str, nodes: int) -> None:
    for cluster in clusters(nodes):
        cluster.reports["node2"] = FAULTS[fault](cluster.reports["node2"])
        assert cluster.found == {"node2"}


@pytest.mark.parametrize("nodes", [3, 4, 8])
@pytest.mark.parametrize("rate", [0.0, PAIR[0] / 6])
def test_a_node_with_a_bad_connection_to_all_others_is_found(rate: float, nodes: int) -> None:
    for cluster in clusters(nodes):
        cluster.lose("node2", rate)
        assert cluster.found == {"node2"}


def test_two_bad_nodes_of_six_are_found() -> None:
    for cluster in clusters(6):
        cluster.lose("node1")
        cluster.reports["node5"] = slower("product", 3)(cluster.reports["node5"])
        assert cluster.found == {"node1", "node5"}


def test_a_node_that_was_once_as_fast_as_the_others_is_not_slow() -> None:
    cluster = Cluster(1, 4)
    cluster.reports["node2"] = replace(slower("product", 3)(cluster.reports["node2"]), cleared={"product"})
    assert cluster.found == set()


@pytest.mark.parametrize(("memory_gib", "found"), [(None, set()), (40.0, set()), (100.0, {"node2"})])
def test_a_node_that_has_the_memory_that_the_job_needs_is_not_bad(memory_gib: float | None, found: set[str]) -> None:
    cluster = Cluster(1, 4)
    cluster.reports["node2"].values["memory"] = 50
    outliers = find_outliers([*cluster.reports.values()], cluster.pairs, metrics_of(memory_gib))
    assert {outlier.node for outlier in outliers} == found


@pytest.mark.parametrize("fault", ["a clock an hour ahead", "another torch"])
def test_of_two_nodes_that_differ_both_are_found(fault: str) -> None:
    cluster = Cluster(1, 2)
    cluster.reports["node2"] = FAULTS[fault](cluster.reports["node2"])
    assert cluster.found == {"node1", "node2"}


def test_of_two_nodes_the_slow_one_is_found() -> None:
    cluster = Cluster(1, 2)
    cluster.reports["node2"] = slower("product", 2)(cluster.reports["node2"])
    assert cluster.found == {"node2"}


def test_a_broken_link_between_two_nodes_accuses_neither_and_is_named() -> None:
    cluster = Cluster(1, 4)
    cluster.pairs["node1", "node3"] = 0.0
    outliers = find_outliers([*cluster.reports.values()], cluster.pairs)
    assert outliers == []
    assert failed_pairs(cluster.pairs, outliers) == [("node1", "node3")]


def test_a_network_that_is_split_in_half_accuses_none_and_is_named() -> None:
    cluster = Cluster(1, 4)
    across = [(one, other) for one in ("node1", "node2") for other in ("node3", "node4")]
    cluster.pairs |= dict.fromkeys(across, 0.0)
    outliers = find_outliers([*cluster.reports.values()], cluster.pairs)
    assert outliers == []
    assert failed_pairs(cluster.pairs, outliers) == across


@pytest.mark.parametrize(("nodes", "ill"), [(2, 2), (3, 2), (4, 3), (16, 16)])
@pytest.mark.parametrize("fault", ["a full disk", "silence"])
def test_a_fault_that_most_nodes_share_accuses_none_and_is_told(fault: str, nodes: int, ill: int) -> None:
    cluster = Cluster(1, nodes)
    for node in [*cluster.reports][:ill]:
        cluster.reports[node] = FAULTS[fault](cluster.reports[node])
    reports = [*cluster.reports.values()]
    assert find_outliers(reports, cluster.pairs) == []
    (line,) = shared_faults(reports, cluster.pairs)
    assert line.startswith(f"{ill} of {nodes} nodes: ")
    assert "node1" not in line


def test_a_node_with_a_fault_of_its_own_is_found_beside_one_that_most_share() -> None:
    cluster = Cluster(1, 4)
    cluster.reports = {node: FAULTS["a full disk"](report) for node, report in cluster.reports.items()}
    cluster.reports["node2"] = FAULTS["half as fast"](cluster.reports["node2"])
    assert cluster.found == {"node2"}
    assert len(shared_faults([*cluster.reports.values()], cluster.pairs)) == 1


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_a_network_that_no_node_can_use_accuses_none_and_is_one_line(nodes: int) -> None:
    cluster = Cluster(1, nodes)
    cluster.pairs = dict.fromkeys(cluster.pairs, 0.0)
    assert cluster.found == set()
    assert failed_pairs(cluster.pairs, []) == []
    (line,) = shared_faults([*cluster.reports.values()], cluster.pairs)
    assert line.startswith(f"{len(cluster.pairs)} of {len(cluster.pairs)} pairs of nodes: ")


@pytest.mark.parametrize("nodes", [3, 4, 8])
def test_a_bad_node_is_no_fault_that_most_share(nodes: int) -> None:
    for cluster in clusters(nodes):
        cluster.lose("node2")
        assert shared_faults([*cluster.reports.values()], cluster.pairs) == []


@pytest.mark.parametrize(
    ("bad", "nodes", "may"), [(0, 4, False), (1, 1, False), (1, 2, True), (2, 4, True), (2, 3, False)]
)
def test_at_most_half_of_the_nodes_are_excluded(bad: int, nodes: int, may: bool) -> None:
    assert may_exclude(range(bad), range(nodes)) is may


def test_a_line_says_which_node_which_value_what_others_have_and_what_to_do() -> None:
    cluster = Cluster(1, 4)
    for report in cluster.reports.values():
        report.values["product"] = 900
    cluster.reports["node3"].values["product"] = 90
    (outlier,) = find_outliers([*cluster.reports.values()], cluster.pairs)
    assert str(outlier) == (
        "node3: product 90 GFLOP/s, others 900; see what else runs on it and whether it is throttled, or leave it out"
    )
