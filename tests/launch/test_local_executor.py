"""Runs on this machine, under a controller that outlives the command that started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.launch import local_executor, submission
from hpc_recolor.launch.job_folder import JobFolder, Submission, read_history, read_submission
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.runtime.errors import UserError
from tests.conftest import TINY, contents
from tests.support.live import DEADLINE_S, until

LOCAL = JobOptions(cluster="local", ranks_per_node=2, gpus_per_node=0)

# Submits as `submit --cluster local` does, then stays in the foreground as --follow does.
SUBMIT = """
import signal, sys
from pathlib import Path
from hpc_recolor.config_file import load_config
from hpc_recolor.launch import submission
from hpc_recolor.launch.profile import JobOptions
options = JobOptions.model_validate_json(sys.argv[2])
submission.submit(submission.plan([load_config(Path(sys.argv[1]), {})], options, "python -m hpc_recolor.submit"))
print("submitted", flush=True)
signal.pause()
"""


def tiny(photos: Path, **run: object) -> Config:
    tree: dict[str, dict[str, object]] = {
        "data": {"photos": str(photos)},
        "run": run,
        "tracking": {"tensorboard": False},
    }
    for flag, value in zip(TINY[::2], TINY[1::2], strict=True):
        section, field = flag.removeprefix("--").split(".")
        tree.setdefault(section, {})[field] = value
    return load_config(None, tree)


def until_ended(last: Submission) -> None:
    until(lambda: not local_executor.is_running(last), "the end of the local job")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory, forked_python: Path) -> RunFolder:
    """A run of two ranks, submitted from its folder by a process whose group receives SIGINT once it trains."""
    folder = tmp_path_factory.mktemp("local")
    options = LOCAL.model_copy(update={"python": str(forked_python)})
    (folder / "photos").symlink_to(photos)
    (folder / "config.yaml").write_text(to_yaml(tiny(Path("photos"))))
    command = [sys.executable, "-c", SUBMIT, "config.yaml", options.model_dump_json()]
    run = RunFolder(folder / "runs" / "train")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True) as typed:
        assert typed.stdout and typed.stdout.readline() == "submitted\n"
        last = read_submission(JobFolder.of(run))
        until(lambda: len(read_history(JobFolder.of(run))) == 1, "rank 0 starts")
        os.killpg(typed.pid, signal.SIGINT)
        assert typed.wait(DEADLINE_S) != 0
    assert local_executor.is_running(last)
    assert not local_executor.is_running(last.model_copy(update={"logs": folder}))  # the id of another's process
    until_ended(last)
    return run


def test_ranks_are_not_affected_by_ctrl_c_on_the_command_that_submitted_them(trained: RunFolder) -> None:
    first, last = read_history(JobFolder.of(trained))
    assert (first.kind, first.ranks, last.kind, last.reason, last.exit_code) == ("start", 2, "end", "finished", 0)
    submitted = read_submission(JobFolder.of(trained))
    assert submitted.job == first.job
    for rank in range(2):
        log = JobFolder(submitted.logs).log(submitted.job, rank).read_text()
        assert f"=== hpc_recolor job {submitted.job}, restart 0, rank {rank} of 2" in log
        assert "SIGINT" not in log
    assert list(trained.checkpoints.glob("images-*"))


def test_a_run_that_is_submitted_again_from_elsewhere_stays_in_its_folder(trained: RunFolder, tmp_path: Path) -> None:
    """Its config names folders as seen from where it was submitted first."""
    home = JobFolder.of(trained)
    options = JobOptions.model_validate_json(home.options.read_bytes())
    home.options.write_text(options.model_copy(update={"ranks_per_node": 1}).model_dump_json())  # starts sooner
    restart = [sys.executable, "-m", "hpc_recolor.jobs", "restart", str(trained.path)]
    done = subprocess.run(restart, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    last = read_submission(home)
    until_ended(last)
    assert list(tmp_path.iterdir()) == []
    end = read_history(home)[-1]
    assert (end.job, end.kind, end.reason) == (last.job, "end", "finished"), home.log(last.job, 0).read_text()


def test_more_than_one_node_is_refused_and_a_run_that_was_there_is_as_before(photos: Path, tmp_path: Path) -> None:
    config = tiny(photos, folder=str(tmp_path / "runs"))
    claim(RunFolder(tmp_path / "runs" / "train"), config)
    before = contents(tmp_path)
    made = submission.plan([config], LOCAL.model_copy(update={"nodes": 2}), "python -m hpc_recolor.submit")
    with pytest.raises(UserError, match="--nodes=2: --cluster local has only this machine"):
        submission.submit(made)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("job", ["0", "1", "999999999"])
def test_a_process_that_is_not_the_controller_is_not_a_running_job(job: str, tmp_path: Path) -> None:
    last = Submission(
        cluster="local",
        job=job,
        ranks=1,
        nodes=1,
        logs=tmp_path,
        partition=None,
        time=None,
        submitted="2026-01-01T00:00:00+00:00",
        code="0123456789abcdef",
        commit=None,
        command="python -m hpc_recolor.submit",
    )
    assert not local_executor.is_running(last)
