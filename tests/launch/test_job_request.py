"""Requests of jobs, checked against partitions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.launch import job_request, slurm_query
from hpc_recolor.launch.job_request import JobRequest
from hpc_recolor.runtime.errors import UserError
from tests.support.live import slurm
from tests.support.sinfo_output import MIXED

ANYTHING = JobRequest()


@pytest.mark.parametrize(
    ("asked", "nodes", "gpus_per_node"),
    [
        ({}, 4, 0),
        ({"gpus_per_node": 2, "nodes": 3}, 3, 2),
        ({"gpus_per_node": 4}, 1, 4),
        ({"constraint": "v100"}, 2, 2),
        ({"constraint": "a100&nvme"}, 1, 4),
        ({"constraint": "a100|cpu"}, 2, 0),
        ({"constraint": "cpu|a100&nvme"}, 2, 0),
        ({"constraint": "[a100*1]"}, 4, 0),
        ({"cpus_per_node": 8, "memory_gb": 3.5}, 3, 2),
    ],
)
def test_a_request_is_given_the_nodes_that_have_what_it_asks_for(
    asked: dict[str, Any], nodes: int, gpus_per_node: int
) -> None:
    found = job_request.fit(replace(ANYTHING, **asked), *slurm_query.parse_partitions(MIXED))
    assert (found.nodes, found.gpus_per_node) == (nodes, gpus_per_node)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nodes": 5}, "--nodes=5: partition main has 4 usable nodes; ask for that or less"),
        ({"gpus_per_node": 8}, "--gpus-per-node=8: partition main has 4 GPUs a node; ask for that or less"),
        ({"cpus_per_node": 9}, "cpus_per_node=9: partition main has 8 CPUs a node; ask for that or less"),
        ({"memory_gb": 4.0}, "memory_gb=4.0: partition main has 3.90625 GB a node; ask for that or less"),
        (
            {"gpus_per_node": 4, "nodes": 2},
            "--nodes=2: partition main has 1 usable nodes with --gpus-per-node=4; ask for less",
        ),
        (
            {"cpus_per_node": 4, "constraint": "cpu"},
            "--nodes=1: partition main has 0 usable nodes with cpus_per_node=4, --constraint=cpu; ask for less",
        ),
        ({"constraint": "h100"}, "--constraint=h100: not available; use one of a100, big, cpu, nvme, v100"),
    ],
)
def test_what_too_few_nodes_have_is_refused_with_what_there_is(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        job_request.fit(replace(ANYTHING, **asked), *slurm_query.parse_partitions(MIXED))
    assert str(refusal.value) == message


@contextmanager
def updated(thing: str, state: str, back: str) -> Iterator[None]:
    """A node or partition of the real cluster, in another state for a while."""
    slurm("scontrol", "update", thing, f"State={state}", *(["Reason=test"] if state == "DRAIN" else []))
    try:
        yield
    finally:
        slurm("scontrol", "update", thing, f"State={back}")


def test_nodes_that_are_drained_do_not_count(cluster: Path) -> None:
    message = "--nodes=4: partition main has 3 usable nodes"
    with updated("NodeName=node4", "DRAIN", "RESUME"), pytest.raises(UserError, match=message):
        job_request.check(replace(ANYTHING, nodes=4))


def test_a_partition_that_is_closed_is_refused_by_name_and_as_the_default(cluster: Path) -> None:
    message = r"--partition=main: closed, or all its nodes are down or drained; use another one \(urgent\)"
    with updated("PartitionName=main", "DOWN", "UP"):
        for name in (None, "main"):
            with pytest.raises(UserError, match=message):
                job_request.check(replace(ANYTHING, partition=name))
