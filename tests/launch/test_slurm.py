"""The scripts that sbatch gets: each profile's beside a stored one, and what their last lines do after srun."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpc_recolor.launch import slurm
from hpc_recolor.launch.cluster import parse_time
from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.profile import Options, Profile, load_profile
from hpc_recolor.training.preemption import STOPPED
from tests.conftest import ROOT

SCRIPTS = Path(__file__).parent / "scripts"
JOB = JobFolder(Path("/runs/cars/job"))
CODE = JOB.code / "0123456789abcdef"
PROFILES = ("dev_cluster", "gpu_cluster", "container_cluster")
APPTAINER = {"container": {"runtime": "apptainer", "image": "/images/recolor.sif", "mounts": ["/data:/mnt"]}}
OTHERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "no_profile": ({}, None),
    "apptainer_after_limited": (APPTAINER | {"gpus_per_node": 2, "after": "42", "max_requeues": 3}, None),
    "sweep": ({"at_once": 2}, 6),
}


def text(options: Options, tasks: int | None = None) -> str:
    made = slurm.executor(JOB, CODE, "cars", options, tasks).text()
    return made.replace(sys.executable, "/opt/python3") + "\n"


def options(profile: Profile, **more: object) -> Options:
    """As `resolve` makes them, without asking a cluster."""
    time_min = parse_time(profile.time) if profile.time else None
    ranks = max(1, profile.gpus_per_node or 0)
    said = {"nodes": 4, "time_min": time_min, "ranks_per_node": ranks}
    return Options.model_validate(profile.model_dump() | said | more)


def made_scripts() -> dict[str, str]:
    os.chdir("/")
    found = {name: text(options(load_profile(ROOT / f"slurm/profiles/{name}.yaml"))) for name in PROFILES}
    for name, (more, tasks) in OTHERS.items():
        found[name] = text(options(Profile(), ranks_per_node=more.get("gpus_per_node", 1), **more), tasks)
    return found


@pytest.mark.parametrize("name", [*PROFILES, *OTHERS])
def test_a_script_is_the_stored_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is meant to change is written anew by `python -m tests.launch.test_slurm`; read it before its commit."""
    monkeypatch.chdir("/")
    assert made_scripts()[name] == (SCRIPTS / f"{name}.sh").read_text()
    subprocess.run(["bash", "-n", SCRIPTS / f"{name}.sh"], check=True)


FIELDS = ("partition", "account", "qos", "constraint", "python", "network_interface", "scratch", "modules", "time")


@given(st.sampled_from(FIELDS), st.text(alphabet=st.sampled_from("a;#'\"$()`\n\r\t %\\&|<>*\x00\x1b"), min_size=1))
def test_any_text_is_refused_or_stands_in_the_script_without_being_run(field: str, value: str) -> None:
    try:
        made = options(Profile.model_validate({field: [value] if field == "modules" else value} | {"time": None}))
    except ValidationError:
        return
    lines = text(made).splitlines()
    plain = text(options(Profile())).splitlines()
    assert sum(line.startswith("#SBATCH") for line in lines) - sum(line.startswith("#SBATCH") for line in plain) <= 1
    assert len(lines) - len(plain) <= 1
    check = subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, capture_output=True)
    assert check.returncode == 0, check.stderr


def after_srun(
    folder: Path, code: int, marks: tuple[str, ...] = (), scontrol: str = "true", **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run the real script under bash, with an `srun` that ends with `code` and an `scontrol` that tells its words."""
    job = JobFolder(folder / "job")
    job.make()
    for mark in marks:
        (job.path / mark).write_text(str(folder))
    programs = folder / "programs"
    programs.mkdir()
    for name, body in {"srun": f"exit {code}", "scontrol": f'echo "scontrol $*"; {scontrol}'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o700)
    script = slurm.executor(job, job.code / "0", "cars", Options(max_requeues=2)).text()
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7"} | variables
    return subprocess.run(
        ["bash"], input=script, env=environment, capture_output=True, text=True, cwd=folder, timeout=30
    )


def test_ranks_that_ask_are_queued_again_and_ask_only_once(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0",))
    assert (done.returncode, done.stdout) == (0, "scontrol requeue 7\n")
    assert not (tmp_path / "job" / "requeue-7-0").exists()


@pytest.mark.parametrize("code", [0, 1, 2, STOPPED, 137])
def test_ranks_that_do_not_ask_end_the_job_with_their_code(code: int, tmp_path: Path) -> None:
    done = after_srun(tmp_path, code, ("requeue-7-1", "requeue-6-0"))  # of other starts
    assert (done.returncode, done.stdout) == (code, "")


def test_a_signal_before_python_could_listen_queues_the_job_again(tmp_path: Path) -> None:
    assert after_srun(tmp_path, 140).stdout == "scontrol requeue 7\n"


def test_a_task_of_an_array_is_queued_again_alone(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-5_3-0",), SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    assert done.stdout == "scontrol requeue 5_3\n"


def test_a_job_that_the_user_cancelled_is_not_queued_again(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0", "cancelled-7"))
    assert (done.returncode, done.stdout) == (STOPPED, "")


@pytest.mark.parametrize(("scontrol", "restart"), [("false", "0"), ("true", "2")], ids=["fails", "often enough"])
def test_a_job_that_cannot_be_queued_again_says_how_to_go_on(scontrol: str, restart: str, tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, (f"requeue-7-{restart}",), scontrol, SLURM_RESTART_COUNT=restart)
    assert done.returncode == STOPPED
    assert f"python -m hpc_recolor.jobs restart {tmp_path}" in done.stderr


def test_a_job_folder_that_others_could_write_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir(mode=0o755)
    script = slurm.executor(JobFolder(tmp_path / "job"), tmp_path, "cars", Options()).text()
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert done.returncode == 2
    assert "is not yours alone" in done.stderr


if __name__ == "__main__":
    for name, script in made_scripts().items():
        (SCRIPTS / f"{name}.sh").write_text(script)
