"""Which variables of schedulers and launchers reach other processes. The caller may itself be in a job, a step or a
rank, and its variables then describe that one, not the job or the ranks that it starts."""

import os
import re
from collections.abc import Mapping

# When a job's script began, on its host [clock ticks since that was booted].
SCRIPT_BEGAN = "HPC_RECOLOR_SCRIPT_BEGAN"
# Read by SLURM's commands (sbatch(1), srun(1), squeue(1) and so on), or set in what they and submitit start.
SCHEDULER = re.compile(
    r"(SLURMD?|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SACCT|SACCTMGR|SCANCEL|SCONTROL|SSTAT|SPRIO|SPANK|SUBMITIT)_.*"
    rf"|{SCRIPT_BEGAN}"
)
# The job of ranks that `distributed.adopt` describes, with its restart: `7 0`.
ADOPTED_JOB = "HPC_RECOLOR_JOB"
# Set by torchrun, and by the process managers of MPI.
LAUNCHER = re.compile(
    r"(TORCHELASTIC|PMI|PMIX|OMPI|MV2_COMM_WORLD|PALS|FLUX)_.*"
    rf"|{ADOPTED_JOB}|MASTER_ADDR|MASTER_PORT|((LOCAL|GROUP|NODE|ROLE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME"
)
# Of these, how many processes Open MPI, MPICH and Intel MPI, and MVAPICH have started.
SIZES_OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# GPUs of a job, as its own node numbers them.
DEVICES = re.compile(r"(CUDA|ROCR|HIP)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL")
# Which cluster is addressed and as whom, and requests of sbatch that `submit` has no flag for.
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SBATCH_RESERVATION"})


def foreign_names(environment: Mapping[str, str], devices: bool = False) -> list[str]:
    """Names of the variables that a command of SLURM, or a new job, must not inherit.

    devices: whether the choice of GPUs is one of them, as for a job on another node.
    """
    patterns = (SCHEDULER, LAUNCHER, DEVICES) if devices else (SCHEDULER, LAUNCHER)
    return sorted(
        name for name in environment if name not in KEPT and any(pattern.fullmatch(name) for pattern in patterns)
    )


def clear_launcher() -> None:
    """Remove what another launcher has left to this process: torch would take part in that one's rendezvous."""
    for name in [name for name in os.environ if LAUNCHER.fullmatch(name)]:
        del os.environ[name]


def tasks_of_step() -> int:
    """Number of processes in the step that srun started this one in (srun(1)); 1 outside of one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


def processes_of_mpi() -> int:
    """Number of processes that mpirun started beside this one, itself included; 1 without mpirun."""
    numbers = (os.environ.get(name, "") for name in SIZES_OF_MPI)
    return max((int(number) for number in numbers if number.isdecimal()), default=1)
