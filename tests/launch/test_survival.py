"""Jobs on the real cluster that are disturbed in every way, and end as if nothing had been.

SLURM lets a job that is queued again wait for two minutes; tests shorten only that (`Live.until_waiting`).
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.launch.conftest import script
from tests.support.live import SNAPSHOTS, Live, local_ranks, recolor, result, slurm, until


@pytest.fixture(scope="module")
def undisturbed(cluster: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two ranks of this machine make of the same run."""
    return result(local_ranks(2, tmp_path_factory.mktemp("local"), photos))


@pytest.fixture(autouse=True)
def nothing_stays_behind(cluster: Path) -> Iterator[None]:
    """After each test no job is left, no node drained or down, no rank alive."""
    yield
    until(lambda: not slurm("squeue", "-h"), "the queue is empty")
    until(lambda: set(slurm("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "all nodes are idle")
    until(lambda: not ranks(cluster), "no rank is alive")


def ranks(cluster: Path) -> dict[int, int]:
    """The processes of the cluster's ranks by their number, as the kernel knows them."""
    found: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        try:
            command = (place / "cmdline").read_bytes().split(b"\0")
            environment = (place / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        ours = b"SLURM_CONF=" + bytes(cluster / "slurm.conf") in environment
        if ours and b"hpc_recolor.launch.job" in command and b"srun" not in command[0]:
            found |= {int(word[13:]): int(place.name) for word in environment if word.startswith(b"SLURM_PROCID=")}
    return found


def test_four_nodes_train_as_four_local_ranks_do(tmp_path: Path, photos: Path) -> None:
    live = Live(tmp_path)
    live.submit(photos, nodes=4)
    live.finish()
    assert live.history[0].nodes == ("node1", "node2", "node3", "node4")
    (tmp_path / "local").mkdir()
    assert result(live.run) == result(local_ranks(4, tmp_path / "local", photos))


def preempt(live: Live, cluster: Path) -> None:
    slurm("sbatch", "--exclusive", "--partition=urgent", "--nodes=4", "--output=/dev/null", "--wrap", "sleep 3")
    live.until_waiting()


def reach_the_time_limit(live: Live, cluster: Path) -> None:
    slurm("scontrol", "update", f"JobId={live.job}", "TimeLimit=2")  # ranks are told to save two minutes before
    until(lambda: live.squeue("%r") in ("BeginTime", ""), "requeue")
    slurm("scontrol", "update", f"JobId={live.job}", "TimeLimit=30", "StartTime=now+3")


def requeue_by_hand(live: Live, cluster: Path) -> None:
    slurm("scontrol", "requeue", live.job)
    live.until_waiting()


def kill_a_slurmd(live: Live, cluster: Path) -> None:
    os.kill(int((cluster / "node2.pid").read_text()), signal.SIGKILL)
    live.until_waiting()
    script("up")


def restart_slurmctld(live: Live, cluster: Path) -> None:
    os.kill(int((cluster / "slurmctld.pid").read_text()), signal.SIGKILL)
    script("up")


def cancel_and_restart(live: Live, cluster: Path) -> None:
    assert recolor(live.folder, "jobs", "cancel", "runs/train").returncode == 0
    live.until_over()
    assert "stopped by SIGTERM" in str(live.history[-1].reason)
    restart(live)


def kill_a_rank(live: Live, cluster: Path) -> None:
    job = live.job
    os.kill(ranks(cluster)[1], signal.SIGKILL)
    live.until_over()
    until(lambda: slurm("sacct", "-nPX", "-j", job, "-o", "State") == "FAILED", "accounting has it")
    assert "rank 1 on host" in live.log()
    restart(live)


def restart(live: Live) -> None:
    job = live.job
    done = recolor(live.folder, "jobs", "restart", "runs/train")
    assert done.returncode == 0, done.stderr
    assert live.job != job


# SLURM looks at time limits every half a minute, and takes as long to believe that a node is gone. Measuring often
# keeps a run busy meanwhile, and changes nothing that is saved.
SLOWER: dict[Callable[[Live, Path], None], dict[str, Any]] = {
    reach_the_time_limit: {"tracking.samples_every_images": 6},
    kill_a_slurmd: {"tracking.samples_every_images": 4},
}


@pytest.mark.parametrize(
    "disturb",
    [
        preempt,
        reach_the_time_limit,
        requeue_by_hand,
        kill_a_slurmd,
        restart_slurmctld,
        cancel_and_restart,
        kill_a_rank,
    ],
    ids=lambda function: function.__name__,
)
def test_a_run_that_was_disturbed_ends_as_local_ranks_do(
    disturb: Callable[[Live, Path], None],
    tmp_path: Path,
    photos: Path,
    cluster: Path,
    undisturbed: dict[str, bytes],
) -> None:
    live = Live(tmp_path)
    live.submit(photos, **SLOWER.get(disturb, {}))
    live.until_training()
    disturb(live, cluster)
    live.finish()
    assert result(live.run) == undisturbed
    assert {12 * epoch for epoch in SNAPSHOTS} < set(live.saved)  # whatever was pruned and stopped meanwhile


def scancel(live: Live, number: str) -> None:
    subprocess.run(["scancel", f"--signal={number}", live.job], check=True)


def test_a_signal_before_any_rank_can_listen_costs_nothing(
    tmp_path: Path, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    live = Live(tmp_path)
    live.submit(photos)
    until(lambda: slurm("squeue", "-h", "--steps", f"--jobs={live.job}", "-o", "%i").count(f"{live.job}.0"))
    scancel(live, "USR2")
    live.until_waiting()
    live.finish()
    assert result(live.run) == undisturbed


def test_a_signal_during_start_up_is_obeyed_before_the_first_step(
    tmp_path: Path, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    live = Live(tmp_path)
    live.submit(photos)
    until(lambda: "=== hpc_recolor" in live.log(), "a rank starts")
    scancel(live, "USR2")
    live.until_waiting()
    assert live.saved in ([], [0])
    live.finish()
    assert result(live.run) == undisturbed


@pytest.mark.parametrize(
    ("place", "every"),
    [("samples/*.png", "tracking.samples_every_images"), ("checkpoints/.writing-*", "checkpoint.every_images")],
    ids=["evaluation", "a save"],
)
def test_a_signal_during_long_work_is_obeyed_after_it(
    place: str, every: str, tmp_path: Path, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    live = Live(tmp_path)
    often: dict[str, Any] = {every: 120, "checkpoint.background": "false"}
    live.submit(photos, **often)
    until(lambda: list(live.run.path.glob(place)), place)
    scancel(live, "USR2")
    live.until_waiting()
    live.finish()
    assert result(live.run) == undisturbed


def test_two_nodes_go_on_with_what_four_began(tmp_path: Path, photos: Path) -> None:
    live = Live(tmp_path)
    live.submit(photos, nodes=4, **{"train.epochs": 2})
    live.finish()
    live.submit(photos, nodes=2, **{"train.epochs": 4})
    live.finish()
    assert "training runs/train on 2 x cpu: 12 photographs, 3 held out, from image 24 to 48" in live.log()
    assert live.saved[-1] == 48


def test_a_sweep_is_an_array_of_two_at_a_time_and_losing_one_run_leaves_five(tmp_path: Path, photos: Path) -> None:
    rates = [f"{number}e-4" for number in range(1, 7)]
    grid = ["--grid", f"train.lr={','.join(rates)}", "--at-once", "2", "--name", "rates"]
    live = Live(tmp_path, f"train-lr-{rates[1]}")
    live.submit(photos, *grid, nodes=1, **{"train.epochs": 20})
    runs = [Live(tmp_path, f"train-lr-{rate}") for rate in rates]
    assert len({run.job.split("_")[0] for run in runs}) == 1
    at_once = []

    def over() -> bool:
        at_once.append(len(slurm("squeue", "-h", "-t", "running", "-o", "%i").split()))
        return not slurm("squeue", "-h")

    until(lambda: "training runs/" in live.log(), "the second run trains")
    assert recolor(tmp_path, "jobs", "cancel", f"runs/{live.run.path.name}").returncode == 0
    until(over, "the end")
    assert max(at_once) == 2
    ends = [run.history[-1].reason for run in runs]
    assert [end == "finished" for end in ends] == [rate != rates[1] for rate in rates], ends


def test_a_job_that_is_queued_again_runs_the_code_that_was_submitted(
    tmp_path: Path, photos: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    for package in (ROOT / "hpc_recolor", ROOT / "kernels" / "recolor_kernels"):
        shutil.copytree(package, code / package.name)
    monkeypatch.setenv("PYTHONPATH", str(code))
    live = Live(tmp_path)
    live.submit(photos)
    live.until_training()
    for file in code.rglob("*.py"):
        file.write_text("raise SystemExit('not what was submitted')")
    monkeypatch.delenv("PYTHONPATH")
    requeue_by_hand(live, tmp_path)
    live.finish()
    assert result(live.run) == undisturbed
