"""Job scripts as `submit` would pass them to sbatch, without a cluster."""

import sys
from pathlib import Path

from hpc_recolor.launch import slurm_executor
from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.profile import JobOptions, Profile
from hpc_recolor.launch.slurm_time import parse_time

JOB = JobFolder(Path("/runs/cars/job"))
CODE = JOB.code / "0123456789abcdef"


def text(options: JobOptions, tasks: int | None = None) -> str:
    made = slurm_executor.executor(JOB, CODE, "cars", options, tasks).text()
    return made.replace(sys.executable, "/opt/python3") + "\n"


def options(profile: Profile, **more: object) -> JobOptions:
    """As `resolve` makes them, without asking a cluster."""
    time_min = parse_time(profile.time) if profile.time else None
    ranks = max(1, profile.gpus_per_node or 0)
    fields = {"nodes": 4, "time_min": time_min, "ranks_per_node": ranks}
    return JobOptions.model_validate(profile.model_dump() | fields | more)
