"""States of jobs and array tasks, in squeue's spellings and on the real cluster."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from hpc_recolor.launch.job_folder import Submission
from hpc_recolor.launch.job_states import JobState, _script, array_tasks, is_known, job_of, job_states
from hpc_recolor.runtime.errors import UserError
from tests.support.live import slurm, until


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


def test_a_job_with_an_old_id_or_of_a_copied_folder_is_another_one(cluster: Path, tmp_path: Path) -> None:
    """SLURM counts from 1 again after it has lost its state: `jobs cancel` must not reach somebody else's job. Nor that
    of the run that another is a copy of; one that was moved keeps its job."""
    script = tmp_path / "a|b" / ".submission_file_0123abcd.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nsleep 60\n")
    job = slurm("sbatch", "--parsable", "--output=/dev/null", str(script))
    own = submission(job, script.name, script.parent)
    copy = submission(job, script.name, Path(shutil.copytree(script.parent, tmp_path / "copy")))
    others = submission(job, ".submission_file_4567cdef.sh")
    for state in ("RUNNING", "CANCELLED"):
        until(partial(is_in_state, job, state))
        found = job_states([job])
        assert job_of(own, found) == job_of(submission(job, None), found) == found[job]
        assert job_of(others, found) is None
        assert job_of(copy, found) is None or state == "CANCELLED"  # accounting may know its script's name alone
        slurm("scancel", job)
    script.parent.rename(tmp_path / "moved")
    assert job_of(submission(job, script.name, tmp_path / "moved"), found) == found[job]


def test_only_a_folder_that_the_job_was_submitted_from_or_moved_to_has_it(tmp_path: Path) -> None:
    original, copy, moved = (tmp_path / name for name in ("original", "copy", "moved"))
    original.mkdir()
    (original / ".submission_file_0a.sh").touch()
    shutil.copytree(original, copy)
    job = JobState(job="7", state="RUNNING", script=_script(f"sbatch {original}/.submission_file_0a.sh"))
    found = {"7": job}
    assert job_of(submission("7", ".submission_file_0a.sh", original), found) == job
    assert job_of(submission("7", ".submission_file_0a.sh", copy), found) is None
    assert job_of(submission("7", ".submission_file_0b.sh", original), found) is None
    assert _script(".submission_file_0a.sh") == Path(".submission_file_0a.sh")  # the name of a job
    original.rename(moved)
    assert job_of(submission("7", ".submission_file_0a.sh", moved), found) == job


def is_in_state(job: str, state: str) -> bool:
    """With its script, which accounting learns some seconds later."""
    found = job_states([job])[job]
    return state in found.state and found.script is not None


def submission(job: str, script: str | None, logs: Path = Path("logs")) -> Submission:
    return Submission(
        cluster="slurm", job=job, ranks=1, nodes=1, logs=logs, partition=None, time=None, submitted="", code="",
        commit=None, command="", script=script,
    )  # fmt: skip


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
