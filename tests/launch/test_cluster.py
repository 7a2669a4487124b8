"""What SLURM says: its spellings, and the real cluster's answers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.errors import UserError
from hpc_recolor.launch import cluster as slurm_says
from hpc_recolor.launch.cluster import JobRequest, array_tasks, format_time, gpus, job_states, parse_time
from tests.launch.live import slurm, until


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
    assert gpus(gres) == count


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[3-5%2]", ["12_3", "12_4", "12_5"]),
        ("12_[0,7-8]", ["12_0", "12_7", "12_8"]),
    ],
)
def test_an_array_that_waits_is_its_tasks(job: str, tasks: list[str]) -> None:
    assert list(array_tasks(job)) == tasks


def test_partitions_of_the_real_cluster(cluster: Path) -> None:
    main, urgent = slurm_says.partitions()
    assert (main.name, main.is_default, main.is_up, main.nodes) == ("main", True, True, 4)
    assert (main.max_time_min, main.default_time_min, main.gpus_per_node) == (1440, 60, 0)
    assert (urgent.name, urgent.is_default, urgent.max_time_min) == ("urgent", False, 10)


def test_nodes_that_are_drained_do_not_count(cluster: Path) -> None:
    slurm("scontrol", "update", "NodeName=node4", "State=DRAIN", "Reason=test")
    try:
        request = JobRequest(None, 4, 0, None, None, None, None, None, None)
        with pytest.raises(UserError, match="--nodes=4: partition main has 3 usable nodes"):
            slurm_says.check(request)
    finally:
        slurm("scontrol", "update", "NodeName=node4", "State=RESUME")


def test_accounts_and_qualities_of_the_real_cluster(cluster: Path) -> None:
    assert "research" in (slurm_says.accounts() or [])
    assert slurm_says.qualities() == ["normal"]


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


def test_a_job_that_failed_has_its_exit_code(cluster: Path) -> None:
    job = slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap", "exit 3")
    until(lambda: job_states([job])[job].exit_code == 3, "accounting has it")
    assert job_states([job])[job].state == "FAILED"
