"""What SLURM says: its spellings, and the real cluster's answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.launch import job_request, slurm_command, slurm_query
from hpc_recolor.launch.job_request import JobRequest
from hpc_recolor.launch.job_states import array_tasks, is_known, job_states
from hpc_recolor.launch.slurm_query import count_gpus
from hpc_recolor.launch.slurm_time import format_time, parse_time
from hpc_recolor.runtime.errors import UserError
from tests.support.live import slurm, until

ANYTHING = JobRequest()

# What sinfo 22.05 printed of a cluster with GPUs on some nodes; the last row of one whose nodes did not register.
MIXED = """\
sinfo: error: Ignoring ControlMachine since SlurmctldHost is set.
main*|up|1-00:00:00|1:00:00|1|idle~|2|1000|(null)|cpu
main*|up|1-00:00:00|1:00:00|1|mixed#|8|4000|gpu:a100:4|a100,nvme
main*|up|1-00:00:00|1:00:00|1|idle*|8|4000|gpu:v100:2|v100
main*|up|1-00:00:00|1:00:00|1|idle|8|4000|gpu:v100:2|v100
main*|up|1-00:00:00|1:00:00|2|inval|16|8000|gpu:v100:8|v100,big
"""


@given(st.integers(1, 1_000_000))
def test_a_time_is_read_back_as_it_was_written(minutes: int) -> None:
    assert parse_time(format_time(minutes)) == minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("0:30", 1), ("2:00:00", 120), ("1-0", 1440), ("1-2:3", 1563), ("1-00:00:01", 1441)],
)
def test_all_spellings_of_a_time_are_read(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-1", "1-", "UNLIMITED", "1 0", "\u0661", "1\n", "1.5"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time="):
        parse_time(text)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:2(S:0),gpu:v100:1(S:1)", 3),
        ("shard:8,gpu:nvidia_h100_80gb_hbm3:8(S:0-3)", 8),
        ("craynetwork:4,mygpu:3", 0),
    ],
)
def test_gpus_of_a_node_are_counted(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[3-5%2]", ["12_3", "12_4", "12_5"]),
        ("12_[0,7-8]", ["12_0", "12_7", "12_8"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
        ("12_[0-8:4,9%2]", ["12_0", "12_4", "12_8", "12_9"]),
    ],
)
def test_an_array_that_waits_is_its_tasks(job: str, tasks: list[str]) -> None:
    assert list(array_tasks(job)) == tasks


def test_a_partition_is_as_good_as_the_smallest_of_its_usable_nodes() -> None:
    (main,) = slurm_query.parse_partitions(MIXED)
    assert (main.nodes, main.all_nodes) == (4, 6)
    assert [group.count for group in main.groups] == [1, 1, 2]  # their states do not make them different
    assert (main.cpus_per_node, main.memory_mib_per_node, main.gpus_per_node) == (2, 1000, 0)
    assert main.features == {"cpu", "a100", "nvme", "v100", "big"}


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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid qos specification\n",
            "Batch job submission failed: Invalid qos specification (you may not use that --qos); choose one that",
        ),
        ("scancel: error: Kill job error on job id 9: Invalid job id specified", "the job has ended or never existed"),
        ("slurm_load_partitions: Unable to contact slurm controller (connect failure)", "slurmctld does not respond"),
        ("sbatch: error: one\nsbatch: error: one\nsbatch: fatal: two\n", "one; two"),
        ("", "no reason given"),
    ],
)
def test_an_error_of_slurm_is_one_line_with_the_fix_where_it_is_known(said: str, told: str) -> None:
    line = str(slurm_command.slurm_error(said))
    assert told in line
    assert "error: " not in line
    assert "\n" not in line


def test_partitions_of_the_real_cluster(cluster: Path) -> None:
    main, urgent = slurm_query.partitions()
    assert (main.name, main.is_default, main.is_up, main.nodes) == ("main", True, True, 4)
    assert (main.max_time_min, main.default_time_min, main.gpus_per_node) == (1440, 60, 0)
    assert (urgent.name, urgent.is_default, urgent.max_time_min) == ("urgent", False, 10)


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


def test_warnings_of_slurm_are_taken_for_nothing_else(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = (slurm_query.partitions(), slurm_query.accounts(), slurm_query.qualities(), job_states(["999999"]))
    old = tmp_path / "slurm.conf"
    old.write_text((cluster / "slurm.conf").read_text() + "ControlMachine=of-long-ago\n")
    monkeypatch.setenv("SLURM_CONF", str(old))
    assert "Ignoring ControlMachine" in slurm_command.run_command(["sinfo"])
    assert (slurm_query.partitions(), slurm_query.accounts(), slurm_query.qualities(), job_states(["999999"])) == quiet


def test_accounts_and_qualities_of_the_real_cluster(cluster: Path) -> None:
    assert "research" in (slurm_query.accounts() or [])
    assert slurm_query.qualities() == slurm_query.qualities("research") == ["normal"]


def test_states_of_jobs_and_of_tasks_that_wait_run_and_end(cluster: Path) -> None:
    command = ["sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 60"]
    one = slurm(*command)
    array = slurm(*command[:2], "--array=0-3%1", *command[2:])
    tasks = [f"{array}_{number}" for number in range(4)]
    until(lambda: [job_states([one, *tasks])[job].state for job in (one, tasks[0])] == ["RUNNING", "RUNNING"])
    states = job_states([one, *tasks, "999999"])
    assert "999999" not in states
    assert states[one].nodes == "node1"
    assert 3000 < (states[one].time_left_s or 0) <= 3600
    assert {states[task].state for task in tasks[1:]} == {"PENDING"}
    assert states[tasks[1]].reason == "JobArrayTaskLimit"
    slurm("scancel", one, array)
    until(lambda: not slurm("squeue", "-h"))
    assert {state.state.split(" ")[0] for state in job_states([one, *tasks]).values()} == {"CANCELLED"}


def test_all_tasks_of_an_array_are_found_however_slurm_abbreviates_them(cluster: Path) -> None:
    scattered = [number * number + number % 2 for number in range(30)]
    for array, numbers in [("0-60:3", [*range(0, 61, 3)]), (",".join(map(str, scattered)), scattered)]:
        job = slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", f"--array={array}%2", "--wrap", "true")
        tasks = [f"{job}_{number}" for number in numbers]
        found = job_states(tasks)
        assert [found[task].state for task in tasks] == ["PENDING"] * len(tasks)
        slurm("scancel", job)


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -9 $$", 128 + 9)])
def test_a_job_that_failed_has_its_exit_code(command: str, code: int, cluster: Path) -> None:
    job = slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap", command)
    until(lambda: job_states([job])[job].exit_code == code, "accounting has it")
    assert job_states([job])[job].state == "FAILED"


def test_whether_a_job_is_known_is_not_guessed_while_slurm_is_down(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true")
    assert is_known(job)
    assert not is_known("999999")
    slurm("scancel", job)
    dead = tmp_path / "slurm.conf"
    text = (cluster / "slurm.conf").read_text()
    dead.write_text(text.replace("SlurmctldPort=", "SlurmctldPort=1 #") + "MessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(dead))
    with pytest.raises(UserError, match="slurmctld does not respond"):
        is_known(job)


def test_a_program_that_is_not_there_or_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="SLURM: sleep did not respond within 0 s"):
        slurm_command.run_command(["sleep", "60"], timeout_s=0.1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"SLURM: not found on this machine .sinfo is not installed.; .*--cluster local"
    ):
        slurm_query.partitions()
