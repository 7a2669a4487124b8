"""The scripts that sbatch gets: each profile's beside a stored one, and what their last lines do after srun."""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.launch import slurm_executor
from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.profile import JobOptions, Profile, load_profile
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import STOPPED
from hpc_recolor.runtime.launcher_environment import SCRIPT_BEGAN
from hpc_recolor.runtime.process import age_s, start_time
from tests.conftest import ROOT
from tests.support.job_scripts import CODE, JOB, options, text

SCRIPTS = Path(__file__).parent / "scripts"
PROFILES = ("dev_cluster", "gpu_cluster", "container_cluster")
APPTAINER = {"container": {"runtime": "apptainer", "image": "/images/recolor.sif", "mounts": ["/data:/mnt"]}}
OTHERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "no_profile": ({}, None),
    "apptainer_after_limited": (APPTAINER | {"gpus_per_node": 2, "after": "42", "max_requeues": 3}, None),
    "sweep": ({"at_once": 2}, 6),
    "preflight": ({"preflight": True, "exclude_bad": True}, None),
}


def made_scripts() -> dict[str, str]:
    os.chdir("/")
    found = {name: text(options(load_profile(ROOT / f"slurm/profiles/{name}.yaml"))) for name in PROFILES}
    for name, (more, tasks) in OTHERS.items():
        found[name] = text(options(Profile(), ranks_per_node=more.get("gpus_per_node", 1), **more), tasks)
    return found


@pytest.mark.parametrize("name", [*PROFILES, *OTHERS])
def test_a_script_is_the_stored_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To change one on purpose, run `python -m tests.launch.test_slurm_executor`, and read the difference."""
    monkeypatch.chdir("/")
    assert made_scripts()[name] == (SCRIPTS / f"{name}.sh").read_text()
    subprocess.run(["bash", "-n", SCRIPTS / f"{name}.sh"], check=True)


def test_little_memory_is_not_written_as_0_which_slurm_takes_for_all_of_a_node() -> None:
    assert "--mem=0M" not in text(options(Profile(memory_gb=0.0004)))


def test_a_working_directory_with_a_line_break_adds_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a\ntouch HACKED\nb"
    folder.mkdir()
    monkeypatch.chdir(folder)
    try:
        made = slurm_executor.executor(JOB, CODE, "cars", options(Profile())).text()
    except UserError:
        return
    assert "touch HACKED" not in made.split("\n")


def test_showing_a_script_writes_nothing(tmp_path: Path) -> None:
    slurm_executor.executor(JobFolder(tmp_path / "runs" / "job"), tmp_path / "code", "cars", JobOptions()).text()
    assert not list(tmp_path.iterdir())


ARRAY: dict[str, Any] = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}


def after_srun(
    folder: Path,
    code: int,
    marks: tuple[str, ...] = (),
    scontrol: str | None = "true",
    state: str = "RUNNING",
    accounted: str = "RUNNING",
    max_requeues: int = 2,
    **variables: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run the real script under bash with substitutes for SLURM.

    `srun` exits with `code`; `scontrol` prints its arguments, or is missing. PATH has only links to what the script
    needs, so that a real SLURM cannot be reached.
    """
    job = JobFolder(folder / "job")
    job.make()
    for mark in marks:
        (job.path / mark).write_text(str(folder))
    return run_script(job, folder, code, scontrol, state, accounted, max_requeues, None, **variables)


def run_script(
    job: JobFolder,
    folder: Path,
    code: int = 0,
    scontrol: str | None = "true",
    state: str = "RUNNING",
    accounted: str = "RUNNING",
    max_requeues: int = 2,
    more: dict[str, Any] | None = None,
    **variables: str,
) -> "subprocess.CompletedProcess[str]":
    """The script of a job folder, with our own `srun` and `scontrol`; `srun` leaves a file `srun_ran` in `folder`."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("stat", "cat", "rm", "dirname", "grep", "wc", "sleep", "date"):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(shutil.which(name) or "")
    bodies = {"srun": f"echo ${SCRIPT_BEGAN} > srun_ran; exit {code}", "sacct": f"echo '{accounted}'"}
    if scontrol is not None:
        bodies["scontrol"] = f'[ "$1" = show ] && {{ echo "JobState={state}"; exit; }}; echo "scontrol $*"; {scontrol}'
    for name, body in bodies.items():
        program(programs / name, body)
    options = JobOptions(max_requeues=max_requeues, **(more or {}))
    script = slurm_executor.executor(job, job.code / "0", "cars", options).text()
    environment = {"PATH": str(programs), "SLURM_JOB_ID": "7"} | variables
    return subprocess.run(
        ["/bin/bash"], input=script, env=environment, capture_output=True, text=True, cwd=folder, timeout=30
    )


def program(file: Path, body: str) -> str:
    """A script in place of a program. Returns its path."""
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o700)
    return str(file)


def test_ranks_that_request_it_are_requeued_once(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0",))
    assert (done.returncode, done.stdout) == (0, "scontrol requeue 7\n")
    assert not (tmp_path / "job" / "requeue-7-0").exists()


def test_a_job_that_excludes_nodes_is_requeued_and_then_excludes_them(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0", "excluded-7"))
    assert done.stdout == f"scontrol requeue 7\nscontrol update JobId=7 ExcNodeList={tmp_path}\n"
    assert done.returncode == 0


@pytest.mark.parametrize("code", [1, STOPPED])
def test_ranks_do_not_start_on_nodes_that_are_bad(code: int, tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.make()
    done = run_script(job, tmp_path, more={"python": program(tmp_path / "python", f"exit {code}"), "preflight": True})
    assert done.returncode == code
    assert not (tmp_path / "srun_ran").exists()


@pytest.mark.parametrize(("marks", "restart"), [((), "0"), (("requeue-7-1",), "1")])
def test_the_end_of_a_script_is_recorded_however_it_ends(marks: tuple[str, ...], restart: str, tmp_path: Path) -> None:
    after_srun(tmp_path, 0, marks, SLURM_RESTART_COUNT=restart)
    job, number, ended = (tmp_path / "job" / "ended").read_text().split()
    assert (job, number) == ("7", restart)
    assert abs(float(ended) - time.time()) < 60


def test_the_end_of_a_script_is_recorded_once_where_a_preflight_ends_it(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.make()
    run_script(job, tmp_path, more={"python": program(tmp_path / "python", "exit 1"), "preflight": True})
    assert [line.split()[:2] for line in job.ended.read_text().splitlines()] == [["7", "0"]]


@pytest.mark.parametrize("line", ["set -u", "set -e", "set -euo pipefail"])
@pytest.mark.parametrize("preflight", [False, True])
def test_shell_options_of_a_profile_do_not_change_how_a_job_ends(preflight: bool, line: str, tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.make()
    more = {"setup": [line], "preflight": preflight, "python": program(tmp_path / "python", "exit 140")}
    done = run_script(job, tmp_path, 140, more=more)
    assert (done.returncode, done.stdout) == (0, "scontrol requeue 7\n")
    assert job.ended.exists()


@pytest.mark.parametrize("setup", [[], ["set -eu"]])
def test_an_end_that_cannot_be_recorded_changes_no_exit_code(setup: list[str], tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.make()
    job.ended.mkdir()
    done = run_script(job, tmp_path, STOPPED, more={"setup": setup})
    assert (done.returncode, done.stderr) == (STOPPED, "")


def test_a_profile_may_set_variables_of_any_name(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    job.make()
    job.requeue("7", 1).write_text(str(tmp_path))
    names = "job=cars restart=9 job_folder=/nowhere max_requeues=0 request=/nowhere early=/nowhere excluded=/nowhere"
    done = run_script(job, tmp_path, more={"setup": [names]}, SLURM_RESTART_COUNT="1")
    assert (done.returncode, done.stdout) == (0, "scontrol requeue 7\n")


def test_ranks_learn_when_their_script_began_by_the_clock_of_processes(tmp_path: Path) -> None:
    """/proc/uptime is the container's under lxcfs, where the clock of a process is the host's."""
    before = start_time("self")
    job = JobFolder(tmp_path / "job")
    job.make()
    run_script(job, tmp_path)
    began = int((tmp_path / "srun_ran").read_text())
    assert before is not None
    assert before <= began
    assert age_s(began) < 60


@pytest.mark.parametrize("code", [0, 1, 2, STOPPED, 137])
def test_ranks_that_do_not_request_it_end_the_job_with_their_code(code: int, tmp_path: Path) -> None:
    done = after_srun(tmp_path, code, ("requeue-7-1", "requeue-6-0"))  # of other starts
    assert (done.returncode, done.stdout) == (code, "")


def test_a_job_whose_rank_was_killed_says_what_to_do(tmp_path: Path) -> None:
    first, second = after_srun(tmp_path, 137).stderr.splitlines()
    assert "a rank was killed on the node that srun names" in first
    assert second.endswith(f"jobs restart {tmp_path}")


def test_a_signal_before_python_has_a_handler_requeues_the_job(tmp_path: Path) -> None:
    assert after_srun(tmp_path, 140).stdout == "scontrol requeue 7\n"


def test_a_signal_before_python_has_a_handler_five_times_in_a_row_ends_the_job(tmp_path: Path) -> None:
    """As in a job whose time limit comes before its ranks have started."""
    for restart in range(4):
        done = after_srun(tmp_path, 140, max_requeues=9, SLURM_RESTART_COUNT=str(restart))
        assert done.stdout == "scontrol requeue 7\n"
    done = after_srun(tmp_path, 140, max_requeues=9, SLURM_RESTART_COUNT="4")
    assert (done.returncode, done.stdout) == (STOPPED, "")
    assert "stopped: 5 times in a row a signal came before training began" in done.stderr
    assert command_to_resume(done)[-1] == str(tmp_path)


def test_a_start_that_trained_in_between_counts_anew(tmp_path: Path) -> None:
    for _ in range(2):
        for _ in range(4):
            assert after_srun(tmp_path, 140).stdout == "scontrol requeue 7\n"
        assert after_srun(tmp_path, 0, ("requeue-7-0",)).stdout == "scontrol requeue 7\n"


def test_a_job_that_scancel_ended_after_a_signal_is_not_requeued(tmp_path: Path) -> None:
    """`scancel --signal=USR2 JOB`, and then `scancel JOB`: the user's last word."""
    done = after_srun(tmp_path, 0, ("requeue-7-0",), state="COMPLETING", accounted="CANCELLED by 1000")
    assert (done.returncode, done.stdout) == (STOPPED, "")


@pytest.mark.parametrize("accounted", ["PREEMPTED", "TIMEOUT", "NODE_FAIL"])
def test_a_job_that_slurm_ends_is_requeued(accounted: str, tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0",), state="COMPLETING", accounted=accounted)
    assert (done.returncode, done.stdout) == (0, "scontrol requeue 7\n")


def test_a_task_of_an_array_is_requeued_alone(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-5_3-0",), **ARRAY)
    assert done.stdout == "scontrol requeue 5_3\n"


def test_a_job_that_the_user_cancelled_is_not_requeued(tmp_path: Path) -> None:
    done = after_srun(tmp_path, 0, ("requeue-7-0", "cancelled-7"))
    assert (done.returncode, done.stdout) == (STOPPED, "")


@pytest.mark.parametrize("code", [0, 140])
def test_a_cancelled_job_stays_so_whatever_its_exit_code(code: int, tmp_path: Path) -> None:
    done = after_srun(tmp_path, code, ("cancelled-5_3", "requeue-5_3-0"), **ARRAY)
    assert (done.returncode, done.stdout) == (STOPPED, "")


def command_to_resume(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The arguments of the command that the script has printed, as a shell parses them."""
    (line,) = (line for line in done.stderr.splitlines() if "jobs restart" in line)
    return shlex.split(line.partition("resume it with: ")[2])


@pytest.mark.parametrize(
    ("scontrol", "restart"), [("false", "0"), (None, "0"), ("true", "2")], ids=["fails", "is missing", "often enough"]
)
@pytest.mark.parametrize(("code", "asked"), [(0, True), (140, False)], ids=["asked", "signalled"])
def test_a_job_that_cannot_be_requeued_prints_how_to_resume_it(
    code: int, asked: bool, scontrol: str | None, restart: str, tmp_path: Path
) -> None:
    marks = (f"requeue-7-{restart}",) if asked else ()
    done = after_srun(tmp_path, code, marks, scontrol, SLURM_RESTART_COUNT=restart)
    assert done.returncode == STOPPED
    assert "scontrol" not in done.stdout or restart == "0"
    assert command_to_resume(done) == ["python", "-m", "hpc_recolor.jobs", "restart", str(tmp_path)]


def test_a_task_that_was_signalled_too_early_does_not_call_its_sweep_a_run(tmp_path: Path) -> None:
    """`jobs restart` would refuse that folder."""
    sweep = tmp_path / "sweep"
    (sweep / "job").mkdir(parents=True, mode=0o700)
    runs = [str(tmp_path / f"run{number}") for number in range(6)]
    JobFolder(sweep / "job").tasks.write_text(json.dumps(runs))
    done = after_srun(sweep, 140, (), "false", **ARRAY)
    assert done.returncode == STOPPED
    assert f"restart {sweep}" not in done.stderr


ODD_NAMES = ("two words", "it's", 'a "b"', "$(touch HACKED)", "a; touch HACKED", "`touch HACKED`")


@pytest.mark.parametrize("scontrol", ["true", "false"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_run_folder_with_an_odd_name_is_not_run(name: str, scontrol: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    done = after_srun(folder, 0, ("requeue-7-0",), scontrol)
    assert done.stdout == "scontrol requeue 7\n"
    assert done.returncode == (0 if scontrol == "true" else STOPPED), done.stderr
    assert not list(tmp_path.rglob("HACKED"))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_printed_command_can_be_typed_as_it_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    done = after_srun(folder, 0, ("requeue-7-0",), "false")
    assert command_to_resume(done) == ["python", "-m", "hpc_recolor.jobs", "restart", str(folder)]


def no_folder(job: Path) -> None:
    """Of this kind nothing is there."""


def open_to_all(job: Path) -> None:
    job.mkdir()
    job.chmod(0o755)


def given_away(job: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    job.mkdir(mode=0o700)
    os.chown(job, 65534, 65534)


def linked(job: Path) -> None:
    job.with_name("other").mkdir(mode=0o700)
    job.symlink_to(job.with_name("other"))


@pytest.mark.parametrize("prepare", [no_folder, open_to_all, given_away, linked], ids=lambda one: str(one.__name__))
def test_a_job_folder_that_is_not_this_users_alone_is_not_run(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    prepare(tmp_path / "job")
    done = run_script(JobFolder(tmp_path / "job"), tmp_path)
    assert done.returncode == 2
    assert "must be yours with mode 700" in done.stderr
    assert not (tmp_path / "srun_ran").exists()


LOST = """\
#!/bin/bash
(exec -a 'slurmstepd: [7.0]' sleep 4) >/dev/null 2>&1 &
read -rt 60 <> <(:)  # waits without a child, which a kill would leave behind
"""


def run_soon_lost(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    script = script.replace(f"-lt {slurm_executor.LOST_RANKS_S} ", "-lt 1 ")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(
        ["/bin/bash"], input=script, env=environment, capture_output=True, text=True, cwd=folder, timeout=45
    )


def test_ranks_that_cannot_be_looked_for_are_waited_for(tmp_path: Path) -> None:
    """As where processes cannot be started for a while: that is no sign that the ranks have ended."""
    job = JobFolder(tmp_path / "job")
    job.make()
    for name, lines in {
        "srun": "read -rt 7 <> <(:); exit 0",
        "pgrep": f"[ -e {tmp_path}/looked ] && exit 3; : > {tmp_path}/looked",
    }.items():
        program(tmp_path / name, lines)
    script = slurm_executor.executor(job, job.code / "0", "cars", JobOptions()).text()
    assert run_soon_lost(script, tmp_path).returncode == 0


def test_ranks_whose_end_cannot_be_reported_are_not_waited_for_for_good(tmp_path: Path) -> None:
    """As if this node's ranks had ended, and then the network that the others' end would come through was lost."""
    job = JobFolder(tmp_path / "job")
    job.make()
    (tmp_path / "srun").write_text(LOST)
    (tmp_path / "srun").chmod(0o700)
    script = slurm_executor.executor(job, job.code / "0", "cars", JobOptions()).text()
    done = run_soon_lost(script, tmp_path)
    assert done.returncode == 137
    assert "error: ranks of other nodes have not reported their end" in done.stderr


if __name__ == "__main__":
    for name, script in made_scripts().items():
        (SCRIPTS / f"{name}.sh").write_text(script)
