"""`python -m benchmarks.gpu_suite` (`make gpu-suite`): everything in the project that needs a GPU, in one command.

Each part runs in its own process with a time limit; all limits together stay under nine minutes. Nothing is
downloaded: a part whose packages are missing is skipped and names them, so this file itself needs only torch, numpy and
Pillow. It ends with a summary of at most 50 lines.
"""

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import numpy as np
from PIL import Image

from hpc_recolor.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
SUMMARY_LINES = 50
PHOTOS = 2048  # generated, if none are given

# What the goal of 15,000 images/s on an H100 is set for, at 128 px; and what a dry run on a CPU trains instead.
GOAL = ("--model.color", "rgb", "--train.precision", "bf16", "--train.channels_last=true")
SIZES = {
    "cuda": ("--model.width", "64", "--train.batch_size", "256"),
    "cpu": ("--model.width", "4", "--train.batch_size", "16"),
}


@dataclass(frozen=True)
class Part:
    """A command of the suite: arguments of `python -m`, required packages, time limit, output lines for the summary."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    limit_s: int
    shown: int = 3

    @property
    def missing(self) -> list[str]:
        """Required packages that are not installed."""
        return [package for package in self.needs if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


@dataclass(frozen=True)
class Outcome:
    """Result of a part. state: ok, FAILED, TIMED OUT or skipped; lines: the last of its output."""

    part: Part
    state: str
    elapsed_s: float
    lines: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether the suite fails because of it; a skipped part does not count."""
        return self.state in ("FAILED", "TIMED OUT")


def parts(photos: Path, results: Path, work: Path, device: str) -> list[Part]:
    """The suite, most important part first."""
    # Compiling some 330 kernel variants takes most of the time: in parallel.
    workers = ("-n", "8") if _is_installed("xdist") and device == "cuda" else ()
    training = ("numpy", "torch", "deepspeed", "cyclopts", "pydantic", "yaml", "rich", "PIL")
    goal = ("--train.device", device, *GOAL, *SIZES[device])
    step = ("benchmarks.step", *goal, "--rounds", "15", "--steps", "10" if device == "cuda" else "1")
    data = ("benchmarks.data", *goal, "--data.photos", str(photos), "--data.threads", "8")
    epoch = ("hpc_recolor.train", *goal, "--data.photos", str(photos), "--run.folder", str(work))
    return [
        Part(
            name="kernel tests",
            arguments=("pytest", "tests/kernels", "-q", *workers),
            needs=("pytest", "hypothesis", "skimage"),
            limit_s=170,
            shown=5,
        ),
        Part(
            name="kernel speed",
            arguments=("benchmarks.kernels", "--out", str(results)),
            needs=("cyclopts", "pydantic", "rich"),
            limit_s=130,
            shown=14,
        ),
        Part(
            name="step",
            arguments=(*step, "--out", str(results / f"step-{device}.json")),
            needs=training,
            limit_s=120,
            shown=4,
        ),
        Part(
            name="data",
            arguments=(*data, "--rounds", "3", "--turn_s", "1", "--out", str(results / f"data-{device}.json")),
            needs=("nvidia.dali", "torchvision", *training),
            limit_s=55,
            shown=14,
        ),
        Part(
            name="one epoch",
            arguments=(*epoch, "--train.epochs", "1", "--data.threads", "8"),
            needs=("nvidia.dali", "tensorboard", "matplotlib", "torchmetrics", *training),
            limit_s=60,
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if a part failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_suite", allow_abbrev=False, description=__doc__)
    parser.add_argument("--photos", type=Path, help="photographs to train on; generated ones by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for results")
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--without_gpu", action="store_true", help="dry run on a CPU")
    given = parser.parse_args(argv)
    try:
        outcomes = run_suite(given.photos, given.out, given.only, given.without_gpu)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return int(any(outcome.failed for outcome in outcomes))


def run_suite(photos: Path | None, out: Path, only: str, without_gpu: bool) -> list[Outcome]:
    """Run the parts in sequence, print the summary and write it to `out`, next to their results."""
    import torch

    if not torch.cuda.is_available() and not without_gpu:
        raise UserError("torch.cuda", "no GPU is available", "check nvidia-smi, or do a dry run with --without_gpu")
    if not out.is_dir():
        raise UserError(f"out={out}", "no such folder", "create it first")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = [part for part in parts(photos or work / "photos", out, work, device) if only in part.name]
        if photos is None:
            paint(work / "photos", PHOTOS)
        outcomes = [run(part) for part in chosen]
    text = "\n".join(summary(f"{name}, torch {torch.__version__}", outcomes))
    print(f"\n{text}")
    (out / f"gpu-suite-{re.sub('[^a-z0-9]+', '-', name.lower())}.txt").write_text(text + "\n")
    return outcomes


def paint(folder: Path, count: int) -> None:
    """Write `count` smooth colored JPEGs of 320 x 240 pixels, the same in every call."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        small = draw.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def run(part: Part) -> Outcome:
    """Run a part, forward its output, and keep the last lines."""
    if part.missing:
        print(f"== {part.name}: skipped, no package {', '.join(part.missing)}", flush=True)
        return Outcome(part, "skipped", elapsed_s=0, lines=(f"no package {', '.join(part.missing)}",))
    print(f"== {part.name}: python -m {' '.join(part.arguments)}", flush=True)
    started_s = time.monotonic()
    lines: list[str] = []
    with _start(part) as process:
        timer = Timer(part.limit_s, os.killpg, (process.pid, signal.SIGKILL))  # its child processes too
        timer.start()
        for line in process.stdout or ():
            sys.stdout.write(line)
            lines += [line.rstrip()] if line.strip() else []
    timer.cancel()
    elapsed_s = time.monotonic() - started_s
    state = "ok" if process.returncode == 0 else "TIMED OUT" if elapsed_s >= part.limit_s else "FAILED"
    return Outcome(part, state, elapsed_s, lines=tuple(lines[-part.shown :]))


def _start(part: Part) -> "subprocess.Popen[str]":
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, "-m", *part.arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "150", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def summary(title: str, outcomes: list[Outcome]) -> list[str]:
    """At most SUMMARY_LINES lines: state and elapsed seconds of every part, and the last lines of its output."""
    lines = [f"GPU suite on {title}: {sum(outcome.elapsed_s for outcome in outcomes):.0f} s"]
    for outcome in outcomes:
        lines += [f"{outcome.state:>9}  {outcome.part.name}, {outcome.elapsed_s:.0f} s"]
        lines += [f"           {line[:120]}" for line in outcome.lines]
    return lines[:SUMMARY_LINES]


if __name__ == "__main__":
    sys.exit(main())
