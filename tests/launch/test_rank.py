"""A rank's place in its job, from the environment of SLURM or the local controller, and where ranks rendezvous."""

import json
import os
from pathlib import Path

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import to_yaml
from hpc_recolor.launch import rank
from hpc_recolor.launch.job_folder import IDLE_STARTS, JobFolder, read_history
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.rank import RankInfo
from hpc_recolor.run_folder.checkpoints import folder_name
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import EarlyEndError, UserError
from hpc_recolor.runtime.exit_codes import STOPPED
from hpc_recolor.runtime.launcher_environment import SCRIPT_BEGAN
from hpc_recolor.runtime.process import start_time
from hpc_recolor.runtime.signals import StopRequest

# What SLURM 22.05 gave to the last rank of `sbatch --array=3 --nodes=2 --ntasks-per-node=2`, but for the address.
STEP = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURMD_NODENAME": "node2",
    "SLURM_ARRAY_JOB_ID": "21",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_JOB_ID": "21",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
}
LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}
PLAIN = {key: value for key, value in STEP.items() if "ARRAY" not in key}


def rank_info(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> RankInfo:
    """Of a rank that is started with that environment."""
    for name in os.environ:
        if name.startswith(("SLURM", "SUBMITIT")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return RankInfo.from_environment()


def made_job_folder(run: Path) -> JobFolder:
    folder = JobFolder.of(RunFolder(run))
    folder.make()
    folder.config.write_text(to_yaml(Config()))
    folder.options.write_text(JobOptions().model_dump_json())
    return folder


def test_a_task_of_an_array_is_a_job_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    info = rank_info(monkeypatch, STEP)
    assert info.job == "21_3"
    assert (info.rank, info.size, info.local_rank, info.local_size) == (3, 4, 1, 2)
    assert info.nodes == ("node1", "node2")
    assert (info.node, info.restart, info.is_main) == ("node2", 0, False)


def test_a_requeued_job_knows_its_restart_count(monkeypatch: pytest.MonkeyPatch) -> None:
    info = rank_info(monkeypatch, PLAIN | {"SLURM_RESTART_COUNT": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert (info.job, info.restart, info.is_main) == ("21", 12, True)


@pytest.mark.parametrize(
    ("variables", "nodes"),
    [
        ("gpu07", ("gpu07",)),
        ("node[1,3-4]", ("node1", "node3", "node4")),
        ("a[08-10],b2", ("a08", "a09", "a10", "b2")),
        ("rack1-node[1-2].example.org", ("rack1-node1.example.org", "rack1-node2.example.org")),
    ],
)
def test_nodes_are_listed_one_by_one(variables: str, nodes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_info(monkeypatch, PLAIN | {"SLURM_JOB_NODELIST": variables}).nodes == nodes


def test_ranks_meet_at_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_info(monkeypatch, PLAIN | {"SLURM_JOB_NODELIST": "localhost"}).address() in ("127.0.0.1", "::1")


def test_nodes_without_an_address_use_that_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = PLAIN | {"SLURM_JOB_NODELIST": "no-such-node[1-2].invalid"}
    assert rank_info(monkeypatch, unknown).address() == "10.1.2.3"


def test_a_job_that_starts_again_and_again_without_an_image_more_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    folder = made_job_folder(run.path)
    (run.checkpoints / folder_name(64)).mkdir(parents=True)
    monkeypatch.setattr(rank, "_train", lambda config, request: None)
    first_rank = PLAIN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}

    def start(job: str) -> None:
        rank._run(folder, rank_info(monkeypatch, first_rank | {"SLURM_JOB_ID": job}), StopRequest())

    for _ in range(IDLE_STARTS):
        start("21")
    start("22")  # another job begins anew
    with pytest.raises(UserError, match="job 21: was started 5 times at 64 images, and saved none more; see its logs"):
        start("21")
    assert "was started 5 times" in str(read_history(folder)[-1].reason)
    (run.checkpoints / folder_name(65)).mkdir()
    start("21")
    assert read_history(folder)[-2].images == 65


@pytest.mark.parametrize(("number", "alone", "code", "requested"), [
    ("1", True, STOPPED, True),
    ("0", True, STOPPED, True),
    ("0", False, 0, True),
    ("1", False, 0, False),
])  # fmt: skip
def test_a_rank_that_is_stopped_before_the_others_have_come_has_srun_end_them_and_the_job_requeued(
    number: str, alone: bool, code: int, requested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for it for ten minutes. Ranks that stop together exit with 0, and rank 0 asks for all."""
    folder = made_job_folder(tmp_path / "run")
    end = EarlyEndError("stopped by SIGUSR2", STOPPED, requeue=True, alone=alone)
    monkeypatch.setattr(rank, "_train", lambda config, request: end)
    info = rank_info(monkeypatch, PLAIN | {"SLURM_PROCID": number, "SLURM_LOCALID": number})
    assert rank._run(folder, info, StopRequest()) == code
    assert folder.requeue(info.job, info.restart).exists() == requested


def test_local_ranks_are_known_by_their_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    info = rank_info(monkeypatch, LOCAL)
    assert (info.job, info.rank, info.size, info.local_rank, info.local_size) == ("4711", 1, 2, 1, 2)
    assert (info.address(), info.restart, info.cluster) == ("127.0.0.1", 0, "local")


def test_local_ranks_inside_an_allocation_are_not_slurms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a user who tries --cluster local in an interactive job."""
    info = rank_info(monkeypatch, STEP | LOCAL)
    assert (info.job, info.rank, info.size, info.cluster) == ("4711", 1, 2, "local")
    assert info.address() == "127.0.0.1"


def test_a_task_of_a_sweep_takes_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = JobFolder(tmp_path / "sweep" / "job")
    sweep.make()
    runs = [str(tmp_path / f"run{number}") for number in range(6)]
    sweep.tasks.write_text(json.dumps(runs))
    rank_info(monkeypatch, STEP)
    assert rank._folder_of_task(sweep) == JobFolder.of(RunFolder(tmp_path / "run3"))
    rank_info(monkeypatch, PLAIN)
    assert rank._folder_of_task(sweep) == sweep


def test_ranks_train_the_run_that_their_job_folder_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config may say where it was before the user moved it."""
    folder = JobFolder(tmp_path / "moved" / "job")
    folder.make()
    folder.config.write_text(to_yaml(Config()))
    folder.options.write_text(JobOptions().model_dump_json())
    trained: list[Config] = []

    monkeypatch.setattr(rank, "_train", lambda config, request: trained.append(config))
    assert rank._run(folder, rank_info(monkeypatch, PLAIN), StopRequest()) == 0
    assert trained[0].run.folder / trained[0].run.name == tmp_path / "moved"


def test_a_node_that_cannot_be_prepared_leaves_its_reason_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `jobs status` could only show that no end was recorded."""
    folder = JobFolder(tmp_path / "run" / "job")
    folder.make()
    (tmp_path / "file").touch()
    folder.config.write_text(to_yaml(Config()))
    folder.options.write_text(JobOptions(scratch=str(tmp_path / "file")).model_dump_json())
    first = rank_info(monkeypatch, PLAIN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    with pytest.raises(UserError, match="Not a directory"):
        rank._run(folder, first, StopRequest())
    assert "Not a directory" in str(read_history(folder)[-1:])


def test_a_rank_knows_the_age_of_its_jobs_script(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank._script_age_s() == 0.0
    own = start_time("self") or 0
    monkeypatch.setenv(SCRIPT_BEGAN, str(own))
    age_s = rank._script_age_s()
    assert 0 < age_s < 24 * 3600
    monkeypatch.setenv(SCRIPT_BEGAN, str(own - 100 * os.sysconf("SC_CLK_TCK")))
    assert 99 < rank._script_age_s() - age_s < 160
    monkeypatch.setenv(SCRIPT_BEGAN, "")
    assert rank._script_age_s() == 0.0
