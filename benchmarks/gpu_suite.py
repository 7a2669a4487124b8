"""`python -m benchmarks.gpu_suite` (`make gpu-suite`): everything in the project that needs a GPU, in one command.

Each part is a process of its own with a time limit; all limits together stay under nine minutes. Nothing is
downloaded: a part whose package is missing is skipped with the package's name, so that this file itself needs no more
than torch, numpy and Pillow. What it prints last is at most 50 lines.
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
PHOTOS = 2048  # painted, if none are given


@dataclass(frozen=True)
class Part:
    """A command of the suite: `python -m` arguments, packages it needs, seconds it may take, lines worth showing."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    limit_s: int
    shown: int = 3

    @property
    def missing(self) -> list[str]:
        return [package for package in self.needs if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


@dataclass(frozen=True)
class Outcome:
    """How a part ended: ok, FAILED, TIMED OUT or skipped; and the lines worth showing."""

    part: Part
    state: str
    elapsed_s: float
    lines: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return self.state in ("FAILED", "TIMED OUT")


def parts(photos: Path, results: Path, work: Path, device: str) -> list[Part]:
    """The suite, most telling first. Later work adds its own here."""
    # Most of their time goes into compiling some 330 variants of the kernels, one after the other.
    together = ("-n", "8") if _is_installed("xdist") and device == "cuda" else ()
    training = ("numpy", "torch", "deepspeed", "cyclopts", "pydantic", "yaml", "rich", "PIL")
    step = ("benchmarks.step", "--train.device", device, "--rounds", "11", "--steps", "5")
    data = ("benchmarks.data", "--data.photos", str(photos), "--train.device", device, "--data.threads", "8")
    epoch = ("hpc_recolor.train", "--data.photos", str(photos), "--train.device", device, "--run.folder", str(work))
    return [
        Part("kernel tests", ("pytest", "tests/kernels", "-q", *together), ("pytest", "hypothesis", "skimage"), 200, 5),
        Part("kernel speed", ("benchmarks.kernels", "--out", str(results)), ("cyclopts", "pydantic", "rich"), 160, 14),
        Part(
            "step, width 64",
            (*step, "--train.batch_size", "64", "--out", str(results / f"step-{device}-width64-batch64.json")),
            training,
            50,
            1,
        ),
        Part(
            "data",
            (
                *data,
                "--train.batch_size",
                "64",
                "--rounds",
                "3",
                "--turn_s",
                "1",
                "--out",
                str(results / f"data-{device}.json"),
            ),
            ("nvidia.dali", "torchvision", *training),
            55,
            14,
        ),
        Part(
            "one epoch",
            (*epoch, "--train.epochs", "1", "--train.batch_size", "64", "--data.threads", "8"),
            ("nvidia.dali", "tensorboard", "matplotlib", "torchmetrics", *training),
            70,
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if a part failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_suite", allow_abbrev=False, description=__doc__)
    parser.add_argument("--photos", type=Path, help="photographs to train on; without it, painted ones")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for results")
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--without_gpu", action="store_true", help="rehearse on a CPU")
    given = parser.parse_args(argv)
    try:
        outcomes = run_suite(given.photos, given.out, given.only, given.without_gpu)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return int(any(outcome.failed for outcome in outcomes))


def run_suite(photos: Path | None, out: Path, only: str, without_gpu: bool) -> list[Outcome]:
    """Run the parts one after the other, print the summary and write it to `out`, where their results are too."""
    import torch

    if not torch.cuda.is_available() and not without_gpu:
        raise UserError("torch finds no GPU here: check nvidia-smi, or rehearse with --without_gpu")
    if not out.is_dir():
        raise UserError(f"out={out}: no such folder; make it first")
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
    """Smooth colored JPEGs of 320 x 240 pixels, the same every time."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        small = draw.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def run(part: Part) -> Outcome:
    """Run a part with its output passed on, and keep its last lines."""
    if part.missing:
        print(f"== {part.name}: skipped, no package {', '.join(part.missing)}", flush=True)
        return Outcome(part, "skipped", 0, (f"no package {', '.join(part.missing)}",))
    print(f"== {part.name}: python -m {' '.join(part.arguments)}", flush=True)
    started_s = time.monotonic()
    lines: list[str] = []
    with _start(part) as process:
        watch = Timer(part.limit_s, os.killpg, (process.pid, signal.SIGKILL))  # with what it started itself
        watch.start()
        for line in process.stdout or ():
            sys.stdout.write(line)
            lines += [line.rstrip()] if line.strip() else []
    watch.cancel()
    elapsed_s = time.monotonic() - started_s
    state = "ok" if process.returncode == 0 else "TIMED OUT" if elapsed_s >= part.limit_s else "FAILED"
    return Outcome(part, state, elapsed_s, tuple(lines[-part.shown :]))


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
    """At most SUMMARY_LINES lines: every part's state and seconds, and the last of its output."""
    lines = [f"GPU suite on {title}: {sum(outcome.elapsed_s for outcome in outcomes):.0f} s"]
    for outcome in outcomes:
        lines += [f"{outcome.state:>9}  {outcome.part.name}, {outcome.elapsed_s:.0f} s"]
        lines += [f"           {line[:120]}" for line in outcome.lines]
    return lines[:SUMMARY_LINES]


if __name__ == "__main__":
    sys.exit(main())
