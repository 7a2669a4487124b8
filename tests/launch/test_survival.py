"""Jobs on the real cluster that are disturbed in every way, and end with the same tensors as an undisturbed run.

SLURM delays a requeued job by two minutes; tests shorten only that (`Live.until_waiting`). Ranks are forks that do not
import torch again, except where start-up matters.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.launch.conftest import script
from tests.support.fork_server import SLOW_DISK_S, ForkServer
from tests.support.live import DEADLINE_S, SNAPSHOTS, Live, flags, local_ranks, recolor, result, slurm, until
from tests.support.submitted_ranks import ranks


@pytest.fixture(scope="module")
def undisturbed(fork_server: ForkServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of the same run on two ranks of this machine without SLURM."""
    return result(local_ranks(fork_server, 2, tmp_path_factory.mktemp("local"), photos))


@pytest.fixture(autouse=True)
def nothing_stays_behind(cluster: Path) -> Iterator[None]:
    """After each test no job is queued, no node drained or down, no rank alive."""
    yield
    until(lambda: not slurm("squeue", "-h"), "the queue is empty")
    until(lambda: set(slurm("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "all nodes are idle")
    until(lambda: not ranks(cluster), "no rank is alive")


def test_four_nodes_train_as_four_local_ranks_do(
    tmp_path: Path, photos: Path, fork_server: ForkServer, forked_python: Path
) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, nodes=4)
    live.finish()
    assert live.history[0].nodes == ("node1", "node2", "node3", "node4")
    (tmp_path / "local").mkdir()
    assert result(live.run) == result(local_ranks(fork_server, 4, tmp_path / "local", photos))


def preempt(live: Live, cluster: Path) -> None:
    slurm("sbatch", "--exclusive", "--partition=urgent", "--nodes=4", "--output=/dev/null", "--wrap", "sleep 3")
    live.until_waiting()


def requeue_by_hand(live: Live, cluster: Path) -> None:
    slurm("scontrol", "requeue", live.job)
    live.until_waiting()


def restart_slurmctld(live: Live, cluster: Path) -> None:
    os.kill(int((cluster / "slurmctld.pid").read_text()), signal.SIGKILL)
    script("up")


def cancel_and_restart(live: Live, cluster: Path) -> None:
    assert recolor(live.folder, "jobs", "cancel", "runs/train").returncode == 0
    live.until_ended()
    assert "stopped by SIGTERM" in str(live.history[-1].reason)
    restart(live)


def kill_a_rank(live: Live, cluster: Path) -> None:
    job = live.job
    os.kill(ranks(cluster)[1], signal.SIGKILL)
    live.until_ended()
    until(lambda: slurm("sacct", "-nPX", "-j", job, "-o", "State") == "FAILED", "accounting has it")
    assert "rank 1 on host" in live.log()
    restart(live)


def restart(live: Live) -> None:
    job = live.job
    done = recolor(live.folder, "jobs", "restart", "runs/train")
    assert done.returncode == 0, done.stderr
    assert live.job != job


def test_a_run_outlives_a_killed_slurmctld(
    tmp_path: Path, photos: Path, cluster: Path, undisturbed: dict[str, bytes]
) -> None:
    """On new interpreters: slurmctld takes seconds to store that a job has started, and forks train before that."""
    live = Live(tmp_path)
    live.submit(photos)
    live.until_training()
    restart_slurmctld(live, cluster)
    live.finish()
    assert result(live.run) == undisturbed


def test_a_run_that_is_disturbed_again_and_again_ends_as_local_ranks_do(
    tmp_path: Path, photos: Path, cluster: Path, fork_server: ForkServer, forked_python: Path
) -> None:
    long = {"train.epochs": 200}  # not over before the last disturbance
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **long)
    for start, disturb in enumerate((preempt, requeue_by_hand, cancel_and_restart, kill_a_rank), start=1):
        live.until_training(start)
        disturb(live, cluster)
    live.finish()
    assert live.starts == 5
    (tmp_path / "local").mkdir()
    assert result(live.run) == result(local_ranks(fork_server, 2, tmp_path / "local", photos, **long))
    assert {12 * epoch for epoch in SNAPSHOTS} < set(live.saved)  # whatever was pruned and stopped meanwhile


def stop_sampling(live: Live) -> None:
    """Wait until it is requeued, and let its ranks read a config without samples, so that it finishes soon."""
    until(lambda: live.squeue("%r") == "BeginTime", "requeue")
    frequent, rare = (f"samples_every_images: {number}\n" for number in (4, 10**9))
    config = live.home.config.read_text()
    assert frequent in config
    live.home.config.write_text(config.replace(frequent, rare))


def test_runs_that_reach_their_time_limit_or_lose_a_node_end_as_local_ranks_do(
    tmp_path: Path, photos: Path, cluster: Path, undisturbed: dict[str, bytes], forked_python: Path
) -> None:
    """SLURM checks time limits twice a minute, and takes as long to give up a node: both runs wait at once.

    Frequent samples keep the runs busy meanwhile, and change nothing that is saved.
    """
    limited, bereft = lives = [Live(tmp_path / name, python=forked_python) for name in ("limited", "bereft")]
    for live in lives:
        live.folder.mkdir()
        live.submit(photos, **{"tracking.samples_every_images": 4})
    for live in lives:
        live.until_training()
    slurm("scontrol", "update", f"JobId={limited.job}", "TimeLimit=2")  # ranks save two minutes before the limit
    node = bereft.history[0].nodes[1]
    os.kill(int((cluster / f"{node}.pid").read_text()), signal.SIGKILL)
    stop_sampling(bereft)
    bereft.until_waiting()
    script("up")
    stop_sampling(limited)
    slurm("scontrol", "update", f"JobId={limited.job}", "TimeLimit=30")
    limited.until_waiting()
    for live in lives:
        live.finish()
        assert live.starts == 2
        assert result(live.run) == undisturbed


def scancel(live: Live, number: str) -> None:
    subprocess.run(["scancel", f"--signal={number}", live.job], check=True)


def test_signals_during_start_up_cost_nothing_and_a_requeued_job_runs_the_code_that_was_submitted(
    tmp_path: Path, photos: Path, cluster: Path, undisturbed: dict[str, bytes]
) -> None:
    """A signal before any rank has a handler, and one before the first step; then the code is broken."""
    code = tmp_path / "code"
    for package in (ROOT / "hpc_recolor", ROOT / "kernels" / "recolor_kernels"):
        shutil.copytree(package, code / package.name)
    live = Live(tmp_path)
    submit = [sys.executable, "-m", "hpc_recolor.submit", "--nodes=2", *flags(photos)]
    environment = os.environ | {"PYTHONPATH": str(code)}
    subprocess.run(submit, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=DEADLINE_S)
    for file in code.rglob("*.py"):
        file.write_text("raise SystemExit('not what was submitted')")

    signaled: set[int] = set()

    def signal_each_at_once() -> bool:
        for process in set(ranks(cluster).values()) - signaled:
            os.kill(process, signal.SIGUSR2)
            signaled.add(process)
        return len(signaled) == 2

    until(signal_each_at_once, "both interpreters", poll_s=0.001)
    live.until_waiting()
    first, rest = live.log().split("=== hpc_recolor", 1)
    assert "SIGUSR2: will stop" in first
    assert "=== hpc_recolor" not in rest
    assert not live.saved

    until(lambda: live.log().count("=== hpc_recolor") == 2, "a rank starts")
    scancel(live, "USR2")
    live.until_waiting()
    assert live.saved in ([], [0])

    live.finish()
    assert result(live.run) == undisturbed


def test_a_signal_during_an_evaluation_or_a_save_is_obeyed_after_it(
    tmp_path: Path,
    photos: Path,
    undisturbed: dict[str, bytes],
    cluster: Path,
    forked_python: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live(tmp_path, python=forked_python)
    monkeypatch.setenv(SLOW_DISK_S, "0.3")
    often: dict[str, Any] = {"tracking.samples_every_images": 120, "checkpoint.background": "false"}
    live.submit(photos, **often)
    until(lambda: list(live.run.path.glob("samples/*.png")), "an evaluation", poll_s=0.01)
    scancel(live, "USR2")
    live.until_waiting()
    until(lambda: live.starts == 2 and list(live.run.path.glob("checkpoints/.writing-*")), "a save", poll_s=0.01)
    scancel(live, "USR2")
    live.until_waiting()
    live.finish()
    assert result(live.run) == undisturbed


# Of a submission by a script in a job array, in a shell with leftovers of torchrun and defaults for SLURM's commands.
OF_THE_CALLER = {
    "SLURM_ARRAY_JOB_ID": "4711",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_JOB_ID": "4712",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_MEM_PER_CPU": "100",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_TIMELIMIT": "2",
    "SBATCH_PARTITION": "urgent",
    "SQUEUE_PARTITION": "urgent",
    "SACCT_FORMAT": "jobname",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "3",
    "MASTER_ADDR": "192.0.2.1",
}


def test_a_run_that_is_submitted_inside_another_job_is_a_job_of_its_own(
    tmp_path: Path, photos: Path, undisturbed: dict[str, bytes], forked_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(tmp_path, python=forked_python)
    with monkeypatch.context() as patch:
        for name, value in OF_THE_CALLER.items():
            patch.setenv(name, value)
        live.submit(photos, "--time", 30, "--partition", "main", memory_gb=1)
        live.until_training()
        assert recolor(tmp_path, "jobs", "list").stdout.split().count("running") == 1
    assert live.squeue("%P %l") == "main 30:00"
    slurm("scancel", "--signal=USR2", live.job)
    live.until_waiting()
    live.finish()
    assert result(live.run) == undisturbed


def test_scancel_after_a_signal_ends_the_job(tmp_path: Path, photos: Path, forked_python: Path) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, **{"train.epochs": 1000})
    live.until_training()
    slurm("scancel", "--signal=USR2", live.job)
    slurm("scancel", live.job)
    until(lambda: live.history[-1].kind == "end", "end of the ranks")
    until(lambda: live.squeue("%T") in ("", "PENDING"), "end of the job")
    assert not live.squeue("%T")
    assert "cancelled" in recolor(tmp_path, "jobs", "list").stdout


def test_two_nodes_resume_what_four_began(tmp_path: Path, photos: Path, forked_python: Path) -> None:
    live = Live(tmp_path, python=forked_python)
    live.submit(photos, nodes=4, **{"train.epochs": 2})
    live.finish()
    live.submit(photos, nodes=2, **{"train.epochs": 4})
    live.finish()
    assert "training runs/train on 2 x cpu: 12 photographs, 3 held out, from image 24 to 48" in live.log()
    assert live.saved[-1] == 48


def test_a_sweep_is_an_array_of_two_at_a_time_and_losing_one_run_leaves_five(
    tmp_path: Path, photos: Path, forked_python: Path
) -> None:
    rates = [f"{number}e-4" for number in range(1, 7)]
    grid = ["--grid", f"train.lr={','.join(rates)}", "--at-once", "2", "--name", "rates"]
    live = Live(tmp_path, f"train-lr-{rates[1]}", forked_python)
    live.submit(photos, *grid, nodes=1, **{"train.epochs": 20})
    runs = [Live(tmp_path, f"train-lr-{rate}") for rate in rates]
    assert len({run.job.split("_")[0] for run in runs}) == 1
    at_once = []

    def ended() -> bool:
        at_once.append(len(slurm("squeue", "-h", "-t", "running", "-o", "%i").split()))
        return not slurm("squeue", "-h")

    until(lambda: "training runs/" in live.log(), "the second run trains")
    assert recolor(tmp_path, "jobs", "cancel", f"runs/{live.run.path.name}").returncode == 0
    until(ended, "the end")
    assert max(at_once) == 2
    ends = [run.history[-1].reason for run in runs]
    assert [end == "finished" for end in ends] == [rate != rates[1] for rate in rates], ends
