"""Variables of the caller's scheduler and launcher: which reach SLURM's commands, a new job, and ranks."""

import os
from pathlib import Path

import pytest

from hpc_recolor.launch import slurm_command, slurm_executor
from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.runtime.distributed import adopt
from hpc_recolor.runtime.launcher_environment import foreign_names

# What a user's script, step, launcher or shell sets that describes another job, or changes what SLURM's commands do.
FOREIGN = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_EXPORT_ENV",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_CPU_BIND",
    "SLURM_RESTART_COUNT",
    "SLURM_TIME_FORMAT",
    "SLURM_HINT",
    "SLURMD_NODENAME",
    "HPC_RECOLOR_SCRIPT_BEGAN",
    "SBATCH_EXPORT",
    "SBATCH_TIMELIMIT",
    "SBATCH_PARTITION",
    "SBATCH_NO_REQUEUE",
    "SBATCH_ARRAY_INX",
    "SRUN_CPUS_PER_TASK",
    "SALLOC_PARTITION",
    "SQUEUE_PARTITION",
    "SQUEUE_FORMAT",
    "SINFO_FORMAT",
    "SACCT_FORMAT",
    "SCANCEL_STATE",
    "SCONTROL_ALL",
    "SUBMITIT_LOCAL_JOB_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID",
    "PMI_RANK",
    "PMIX_NAMESPACE",
    "OMPI_COMM_WORLD_RANK",
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "HPC_RECOLOR_JOB",
)
OWN = ("SLURM_CONF", "SLURM_JWT", "SBATCH_RESERVATION", "PATH", "PYTHONPATH", "NCCL_DEBUG", "OMP_NUM_THREADS", "RANKS")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_variable_of_another_job_reaches_no_command_and_no_job(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "other")
    assert f"{name}=other" not in slurm_command.run_command(["env"]).splitlines()
    assert f"--unset={name}" in submission_command()


@pytest.mark.parametrize("name", OWN)
def test_every_other_variable_passes(name: str) -> None:
    assert not foreign_names({name: "value"}, devices=True)


def test_a_job_on_another_node_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert "--unset=CUDA_VISIBLE_DEVICES" in submission_command()
    assert "CUDA_VISIBLE_DEVICES" not in foreign_names(os.environ)  # as for ranks on this machine


def test_ranks_of_a_job_are_not_those_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN:
        monkeypatch.setenv(name, "other")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is restored
    adopt(1, 4, 1, 2, "10.0.0.1", "7 0")
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("1", "4", "10.0.0.1")
    assert not [name for name in os.environ if name.startswith(("TORCHELASTIC", "PMI", "OMPI", "GROUP_", "ROLE_"))]


def submission_command() -> list[str]:
    folder = JobFolder(Path("/runs/cars/job"))
    made = slurm_executor.executor(folder, folder.code, "cars", JobOptions())
    command = made._make_submission_command(folder.path / "script.sh")
    assert command[-2:] == ["sbatch", "/runs/cars/job/script.sh"]
    return command
