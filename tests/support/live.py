"""Runs that are submitted to the real cluster, as users do, and what can be observed of them from outside."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hpc_recolor.launch.job_folder import Event, JobFolder, read_history, read_submission
from hpc_recolor.run_folder.folder import RunFolder
from tests.conftest import TINY, changed
from tests.support.commands import Done, run_forked, run_here
from tests.support.fork_server import ForkServer

DEADLINE_S = 240
EPOCHS = 40  # of 12 photographs: long enough that a test can disturb it
SNAPSHOTS = (15, 30)
FLAGS = {
    "train.epochs": EPOCHS,
    "checkpoint.every_images": 60,
    "tracking.log_every_steps": 5,
    "tracking.samples_every_images": 10**9,
    "tracking.tensorboard": "false",
}


def slurm(*command: str) -> str:
    """Output of a SLURM command."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(condition: Callable[[], object], what: str = "", poll_s: float = 0.05) -> None:
    """Wait for something, for as long as a starved machine may need."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"did not happen: {what or condition}"
        time.sleep(poll_s)


def recolor(folder: Path, name: str, *arguments: object) -> Done:
    """`python -m hpc_recolor.NAME ...`, as typed in `folder`, in this process."""
    return run_here(folder, f"hpc_recolor.{name}", arguments)


def flags(photos: Path, **values: object) -> list[str]:
    """Flags of a small run, as --key=value."""
    pairs = changed(TINY, **{"data.photos": photos} | FLAGS | values)
    snapshots = [f"--train.snapshots={epoch}" for epoch in SNAPSHOTS]
    return [f"{key}={value}" for key, value in zip(pairs[::2], pairs[1::2], strict=True)] + snapshots


class Live:
    """A run in a folder of its own, and its job. python: what its ranks run under, by default a new interpreter."""

    def __init__(self, folder: Path, name: str = "train", python: Path | None = None) -> None:
        self.folder = folder
        self.python = python or Path(sys.executable)
        self.run = RunFolder(folder / "runs" / name)
        self.home = JobFolder.of(self.run)

    def submit(
        self, photos: Path, *arguments: object, nodes: int = 2, memory_gb: float | None = None, **values: object
    ) -> None:
        """Submit it, a rank a node, and expect that to work."""
        profile = self.folder / "profile.yaml"
        profile.write_text(f"python: {self.python}\nmemory_gb: {json.dumps(memory_gb)}\n")
        flagged = ["--nodes", nodes, "--profile", profile, *arguments, *flags(photos, **values)]
        done = recolor(self.folder, "submit", *flagged)
        assert done.returncode == 0, done.stderr

    @property
    def job(self) -> str:
        return read_submission(self.home).job

    @property
    def history(self) -> list[Event]:
        return read_history(self.home)

    def log(self, rank: int = 0) -> str:
        file = JobFolder(read_submission(self.home).logs).log(self.job, rank)
        return file.read_text() if file.exists() else ""

    def squeue(self, field: str) -> str:
        """A field of squeue(1) for the job; empty once it has ended."""
        done = subprocess.run(["squeue", "-h", "-j", self.job, "-o", field], capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    @property
    def starts(self) -> int:
        """How often its ranks have begun to train, in all jobs."""
        return sum(file.read_text().count("training runs/") for file in self.home.path.glob("*_0_log.out"))

    @property
    def images_seen(self) -> int:
        if not self.run.metrics.exists():
            return 0
        rows = self.run.metrics.read_text().splitlines()
        return max((json.loads(row)["images_seen"] for row in rows if row.endswith("}")), default=0)

    @property
    def saved(self) -> list[int]:
        """The images after which there are checkpoints."""
        return sorted(int(path.name[7:]) for path in self.run.checkpoints.glob("images-*"))

    def until_training(self, start: int = 1) -> None:
        """Wait until the ranks have trained after that start, counted from 1, and a checkpoint exists."""
        until(lambda: self.starts >= start and self.saved, f"training, start {start}")
        seen = self.images_seen
        until(lambda: self.images_seen > seen, "a step")

    def until_saved_again(self, start: int) -> None:
        """Wait until that start, counted from 1, has saved a checkpoint of its own."""
        before = self.saved
        until(lambda: self.starts >= start and self.saved[-1:] > before[-1:], f"a checkpoint of start {start}")

    def until_waiting(self) -> None:
        """Wait until it is requeued, and let it start at once instead of in two minutes."""
        until(lambda: self.squeue("%r") == "BeginTime" or not self.squeue("%T"), "requeue")
        assert self.squeue("%T"), f"not requeued:\n{self.log()}"
        slurm("scontrol", "update", f"JobId={self.job}", "StartTime=now+3")

    def until_ended(self) -> None:
        """Wait until the job has ended for good."""
        until(lambda: not self.squeue("%T"), f"end:\n{self.log()}")

    def finish(self) -> None:
        """Wait for the end of the job, and expect that the run is finished."""
        self.until_ended()
        assert self.history[-1].reason == "finished", self.log()


def result(run: RunFolder) -> dict[str, bytes]:
    """All tensors of the last checkpoint: weights, moments, averages, random states."""
    newest = max(run.checkpoints.glob("images-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def local_ranks(server: ForkServer, count: int, folder: Path, photos: Path, **values: object) -> RunFolder:
    """The same run, undisturbed, on ranks of this machine without SLURM."""
    done = run_forked(server, folder, "hpc_recolor.train", flags(photos, **values), ranks=count)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / "train")
