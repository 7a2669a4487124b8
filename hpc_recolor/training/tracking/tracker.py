"""What a run tells while it trains: metrics.jsonl, boards, a line of progress, and warnings."""

import json
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hpc_recolor.config import Config
from hpc_recolor.evaluation.figures import plot_losses
from hpc_recolor.evaluation.validation_scores import Scores
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.process import processor_name
from hpc_recolor.runtime.progress import SECONDS_BETWEEN_LINES
from hpc_recolor.training.checkpointer import Saved
from hpc_recolor.training.step import StepLosses
from hpc_recolor.training.tracking.boards import open_boards
from hpc_recolor.training.tracking.collapse import find_collapse
from hpc_recolor.training.tracking.flops import flop_per_image


class Tracker:
    """Writes a run's numbers, on rank 0 alone. Rows newer than the checkpoint it goes on from are removed."""

    def __init__(
        self, run: RunFolder, config: Config, world: World, images_seen: int, images_total: int, per_epoch: int
    ) -> None:
        self.run, self.config = run, config
        self.images_total, self.per_epoch = images_total, per_epoch
        self.first_seen, self.last_seen = images_seen, images_seen
        self.started_s = self.last_s = time.monotonic()
        self.line_s = 0.0
        self.rank_tflop_per_image = flop_per_image(config) / world.size / 1e12
        self.rows = _rewind(run, images_seen)
        self.troubles = set(self._find_troubles())  # these have been told
        self.boards = open_boards(run, config, images_seen)
        self._append("start", images_seen, describe_start(world))
        self.console = Console(stderr=True)
        self.progress = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,  # or it would print empty lines
        )
        self.task = self.progress.add_task("starting", total=images_total, completed=images_seen)

    def __enter__(self) -> "Tracker":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for board in self.boards:
            board.close()

    def log_step(self, images_seen: int, losses: StepLosses, lr: float, gradient_norms: dict[str, float]) -> None:
        """Note the mean losses since the last call, as floats, and the last step's gradient norms."""
        now = time.monotonic()
        rate = (images_seen - self.last_seen) / (now - self.last_s)
        self.restart_clock(images_seen)
        speeds = {"images_per_s": rate, "rank_tflop_per_s": rate * self.rank_tflop_per_image}
        self._append("train", images_seen, losses._asdict() | {"lr": lr} | speeds | gradient_norms)
        self._warn(images_seen)
        self._show(images_seen, losses, rate)

    def log_scores(self, images_seen: int, scores: Scores, samples: Image.Image) -> None:
        """Note the scores on held-out photographs and some of them as colored, and draw the curves anew."""
        self._append("held_out", images_seen, asdict(scores))
        for board in self.boards:
            board.picture("samples", samples, images_seen)
        self._warn(images_seen)
        plot_losses(self.run.metrics, self.run.losses)
        self.say(
            f"  held out, {scores.photographs} photographs: ab error {scores.ab_error:.2f}, "
            f"gray copy {scores.gray_ab_error:.2f}"
        )
        self.restart_clock(images_seen)

    def log_checkpoint(self, images_seen: int, saved: Saved) -> None:
        """Note a committed checkpoint, and how long training waited for it."""
        values = {"size_mb": saved.size_mb, "elapsed_s": saved.elapsed_s, "stalled_s": saved.stalled_s}
        self._append("checkpoint", saved.images_seen, values)
        self.say(
            f"  saved {saved.images_seen} images: {saved.size_mb:.1f} MB in {saved.elapsed_s:.1f} s, "
            f"training waited {saved.stalled_s:.2f} s"
        )
        if saved.complaint:
            self.say(f"  {saved.complaint}")
        self.restart_clock(images_seen)

    def restart_clock(self, images_seen: int) -> None:
        """Leave what came between two steps (a checkpoint, a measurement) out of images/s."""
        self.last_seen, self.last_s = images_seen, time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the progress bar. Whether somebody still reads it decides nothing."""
        with suppress(BrokenPipeError):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _append(self, kind: str, images_seen: int, values: dict[str, Any]) -> None:
        row = {"kind": kind, "images_seen": images_seen, "epoch": images_seen / self.per_epoch} | values
        with self.run.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        numbers = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        for board in self.boards:
            board.numbers(numbers, images_seen)

    def _warn(self, images_seen: int) -> None:
        """Tell each trouble once, and again if it has been away."""
        found = self._find_troubles()
        for trouble, text in found.items():
            if trouble not in self.troubles:
                self._append("warning", images_seen, {"text": text})
                self.say(f"  WARNING: {text}")
        self.troubles = set(found)

    def _find_troubles(self) -> dict[str, str]:
        return find_collapse(self.rows, self.config.loss.adversarial, self.config.train.epochs)

    def _show(self, images_seen: int, losses: StepLosses, rate: float) -> None:
        epochs = self.config.train.epochs
        text = (
            f"epoch {min(images_seen / self.per_epoch, epochs):.1f}/{epochs}  {rate:.1f} images/s  "
            f"D {losses.discriminator:.3f}  G {losses.generator:.2f} (L1 {losses.l1:.4f})"
        )
        self.progress.update(self.task, completed=images_seen, description=text)
        now = time.monotonic()
        if not self.console.is_terminal and (
            now - self.line_s > SECONDS_BETWEEN_LINES or images_seen >= self.images_total
        ):
            self.line_s = now
            trained = images_seen - self.first_seen
            left_s = (self.images_total - images_seen) * (now - self.started_s) / trained
            self.say(f"{text}  {max(0.0, left_s):.0f} s left")


def _rewind(run: RunFolder, images_seen: int) -> list[dict[str, Any]]:
    """Remove the rows of images that are seen again, and return the others."""
    if not run.metrics.exists():
        return []
    rows = read_metrics(run.metrics)
    kept = [row for row in rows if row["images_seen"] <= images_seen or row["kind"] == "start"]
    write_atomically(run.metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return kept


def describe_start(world: World) -> dict[str, Any]:
    """When, on what and with which code training began or went on."""
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": world.size,
        "device": world.device.type,
        "hardware": gpu or f"{torch.get_num_threads()} threads of {processor_name()}",
        "versions": {"torch": version("torch"), "deepspeed": version("deepspeed"), "hpc_recolor": PACKAGE_VERSION},
        "commit": code_commit(),
    }
