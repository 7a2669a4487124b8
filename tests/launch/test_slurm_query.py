"""Partitions, accounts and qualities of service, in sinfo's spellings and on the real cluster."""

from pathlib import Path

import pytest

from hpc_recolor.launch import slurm_command, slurm_query
from hpc_recolor.launch.job_states import job_states
from hpc_recolor.launch.slurm_query import count_gpus
from tests.support.sinfo_output import MIXED


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


def test_a_partition_is_as_good_as_the_smallest_of_its_usable_nodes() -> None:
    (main,) = slurm_query.parse_partitions(MIXED)
    assert (main.nodes, main.all_nodes) == (4, 6)
    assert [group.count for group in main.groups] == [1, 1, 2]  # their states do not make them different
    assert (main.cpus_per_node, main.memory_mib_per_node, main.gpus_per_node) == (2, 1000, 0)
    assert main.features == {"cpu", "a100", "nvme", "v100", "big"}


def test_a_user_without_a_name_is_called_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert slurm_query._user() == "54321"


def test_partitions_of_the_real_cluster(cluster: Path) -> None:
    main, urgent = slurm_query.partitions()
    assert (main.name, main.is_default, main.is_up, main.nodes) == ("main", True, True, 4)
    assert (main.max_time_min, main.default_time_min, main.gpus_per_node) == (1440, 60, 0)
    assert (urgent.name, urgent.is_default, urgent.max_time_min) == ("urgent", False, 10)


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
