"""What a run reports while it trains: metrics.jsonl, boards, a line of progress, and warnings."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hpc_recolor.config import Config
from hpc_recolor.evaluation.figures import plot_losses, sample_grid
from hpc_recolor.evaluation.validation_scores import Scores
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import append_metrics, rewind_metrics
from hpc_recolor.run_folder.run_readme import write_readme
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import EarlyEndError
from hpc_recolor.runtime.process import processor_name
from hpc_recolor.runtime.progress import SECONDS_BETWEEN_LINES, can_redraw, stderr_console
from hpc_recolor.training.background_writer import SavedCheckpoint
from hpc_recolor.training.schedule import RunLength
from hpc_recolor.training.tracking.boards import Board, open_boards
from hpc_recolor.training.tracking.collapse import find_collapse
from hpc_recolor.training.tracking.flops import flop_per_image

# uint8 (N,H,W,3) by caption
Samples = Mapping[str, NDArray[np.uint8]]


class Tracker:
    """Records nothing: the tracker of all ranks but rank 0, and the interface of `RunTracker`."""

    def open(self, images_seen: int) -> None:
        """Start recording after `images_seen` images."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def log_step(self, images_seen: int, losses: dict[str, float], lr: float, gradient_norms: dict[str, float]) -> None:
        """Log the mean losses since the last call, by name, and the last step's gradient norms."""

    def advance(self, images_seen: int) -> None:
        """Show how far the run is, after every step."""

    def log_scores(self, images_seen: int, scores: Scores, samples: Samples) -> None:
        """Log the scores on held-out photographs, with an image of some of them as colored."""

    def draw_samples(self, images_seen: int, samples: Samples) -> None:
        """Draw some held-out photographs as colored, in the run folder alone."""

    def log_checkpoint(self, images_seen: int, saved: SavedCheckpoint) -> None:
        """Log a committed checkpoint; images_seen: at the commit."""

    def print_line(self, line: str) -> None:
        """Print a line above the progress bar."""


class RunTracker(Tracker):
    """Records a run, on rank 0 alone. `open` removes rows newer than the checkpoint that the run resumes from.

    Raises UserError in `open` if a board cannot be opened, OSError anywhere if the disk is full.
    """

    def __init__(self, run: RunFolder, config: Config, world: World, length: RunLength) -> None:
        self.run, self.config, self.world, self.length = run, config, world, length
        self.rows: list[dict[str, Any]] = []
        self.problems: set[str] = set()  # already reported
        self.boards: list[Board] = []
        self.thread = ThreadPoolExecutor(1, "figures")  # drawing takes longer than many steps of a GPU
        self.figures: Future[tuple[int, Samples, Image.Image]] | None = None
        self.line_s = 0.0
        self.losses = ""  # as last logged, for the line of progress
        self.began: tuple[float, int] | None = None  # end of the first step, and images seen by then
        self.console = stderr_console()
        self.progress = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not can_redraw(self.console),  # or it would print empty lines
        )

    def open(self, images_seen: int) -> None:
        """Rewind metrics.jsonl, open the boards and log the start."""
        self.images_seen = images_seen
        self.restart_clock(images_seen)
        self.rank_tflop_per_image = flop_per_image(self.config) / self.world.size / 1e12
        self.rows = rewind_metrics(self.run.metrics, images_seen)
        self.problems = set(self._find_problems())
        self.boards = open_boards(self.run, self.config, images_seen)
        self._append("start", images_seen, describe_start(self.world))
        self.task = self.progress.add_task("first step", total=self.length.total, completed=images_seen)
        self._write_readme(f"training from image {images_seen:,} of {self.length.total:,}")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        try:
            # No figure takes the place of the error that ends the run: by it, a job is requeued or not.
            with suppress(Exception) if error else nullcontext():
                self._finish_figures()
                if isinstance(error, EarlyEndError):
                    plot_losses(self.run.metrics, self.run.losses)
        finally:
            self.thread.shutdown()
            ended = "stopped by an error" if error else "finished"
            state = "stopped" if isinstance(error, EarlyEndError) else ended
            self._write_readme(f"{state} after image {self.images_seen:,} of {self.length.total:,}")
            for board in self.boards:
                board.close()

    def log_step(self, images_seen: int, losses: dict[str, float], lr: float, gradient_norms: dict[str, float]) -> None:
        """Log the mean losses since the last call, by name, and the last step's gradient norms."""
        if self.figures and self.figures.done():
            self._finish_figures()
        now_s = time.monotonic()
        rate = (images_seen - self.last_seen) / (now_s - self.last_s)
        self.restart_clock(images_seen)
        speeds = {"images_per_s": rate, "rank_tflop_per_s": rate * self.rank_tflop_per_image}
        self._append("train", images_seen, losses | {"lr": lr} | speeds | gradient_norms)
        self._warn(images_seen)
        of_discriminator = "" if self.config.loss.adversarial == "none" else f"D {losses['discriminator']:.3f}  "
        self.losses = f"{of_discriminator}G {losses['generator']:.2f} (L1 {losses['l1']:.4f})"

    def advance(self, images_seen: int) -> None:
        """Show how far the run is, after every step; from the second one on with the time that is left."""
        now_s = time.monotonic()
        self.images_seen = images_seen
        began_s, began_at = self.began = self.began or (now_s, images_seen)  # the first step is slower than the others
        rate = (images_seen - began_at) / (now_s - began_s) if images_seen > began_at else 0.0
        epoch, epochs = images_seen / self.length.per_epoch, self.config.train.epochs
        speed = f"{rate:.1f} images/s" if rate else "second step"
        text = f"epoch {min(epoch, epochs):.1f}/{epochs}  {speed}  {self.losses}".rstrip()
        self.progress.update(self.task, completed=images_seen, description=text)
        is_last = images_seen >= self.length.total
        if not can_redraw(self.console) and (now_s - self.line_s > SECONDS_BETWEEN_LINES or is_last):
            self.line_s = now_s
            left = f"  {(self.length.total - images_seen) / rate:.0f} s left" if rate else ""
            self.print_line(text + left)

    def log_scores(self, images_seen: int, scores: Scores, samples: Samples) -> None:
        """Log the scores on held-out photographs; then draw some of them as colored, and the losses, in a thread."""
        self._append("held_out", images_seen, asdict(scores))
        self._warn(images_seen)
        self._finish_figures()
        self.figures = self.thread.submit(self._draw, images_seen, samples)
        self.print_line(
            f"  held out, {scores.photographs} photographs: ab error {scores.ab_error:.2f}, "
            f"gray copy {scores.gray_ab_error:.2f}"
        )
        self.restart_clock(images_seen)

    def draw_samples(self, images_seen: int, samples: Samples) -> None:
        """Draw some held-out photographs as colored, in the run folder alone."""
        self._finish_figures()  # which may be of the same name
        self._save_samples(images_seen, samples)

    def log_checkpoint(self, images_seen: int, saved: SavedCheckpoint) -> None:
        """Log a committed checkpoint, and how long training waited for it; images_seen: at the commit."""
        values = {"size_mb": saved.size_mb, "elapsed_s": saved.elapsed_s, "stalled_s": saved.stalled_s}
        self._append("checkpoint", saved.images_seen, values)
        self.print_line(
            f"  saved {saved.images_seen} images: {saved.size_mb:.1f} MB in {saved.elapsed_s:.1f} s, "
            f"training waited {saved.stalled_s:.2f} s"
        )
        if saved.warning:
            self.print_line(f"  {saved.warning}")
        self.restart_clock(images_seen)

    def print_line(self, line: str) -> None:
        """Print a line above the progress bar. A reader that has gone, such as `tee`, does not end the run."""
        with suppress(BrokenPipeError):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def restart_clock(self, images_seen: int) -> None:
        """Measure images/s from here on, without the checkpoint or measurement before."""
        self.last_seen, self.last_s = images_seen, time.monotonic()

    def _draw(self, images_seen: int, samples: Samples) -> tuple[int, Samples, Image.Image]:
        grid = self._save_samples(images_seen, samples)
        plot_losses(self.run.metrics, self.run.losses)
        return images_seen, samples, grid

    def _save_samples(self, images_seen: int, samples: Samples) -> Image.Image:
        grid = sample_grid(samples)
        self.run.samples.mkdir(exist_ok=True)
        grid.save(self.run.samples / f"images-{images_seen:012d}.png")
        return grid

    def _finish_figures(self) -> None:
        """Wait for the figures that are being drawn, if any, and show them. Raises OSError if the disk is full."""
        if self.figures is None:
            return
        figures, self.figures = self.figures, None
        images_seen, samples, grid = figures.result()
        rows = zip(*samples.values(), strict=True)
        photographs = [Image.fromarray(np.concatenate(row, axis=1)) for row in rows]
        for board in self.boards:
            board.log_image("samples", grid, images_seen)
            for number, photograph in enumerate(photographs):
                board.log_image(f"photographs/{number}", photograph, images_seen)

    def _append(self, kind: str, images_seen: int, values: dict[str, Any]) -> None:
        row = {"kind": kind, "images_seen": images_seen, "epoch": images_seen / self.length.per_epoch} | values
        append_metrics(self.run.metrics, row)
        self.rows.append(row)
        scalars = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        for board in self.boards:
            board.log_scalars(scalars, images_seen)

    def _warn(self, images_seen: int) -> None:
        """Report each problem once, and again if it was gone in between."""
        found = self._find_problems()
        for problem, text in found.items():
            if problem not in self.problems:
                self._append("warning", images_seen, {"text": text})
                self.print_line(f"  WARNING: {text}")
        self.problems = set(found)

    def _find_problems(self) -> dict[str, str]:
        return find_collapse(self.rows, self.config.loss.adversarial, self.config.train.epochs)

    def _write_readme(self, state: str) -> None:
        write_readme(self.run, self.config, self.length.per_epoch, state)


def describe_start(world: World) -> dict[str, Any]:
    """When, on which hardware and with which code training started or resumed."""
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": world.size,
        "device": world.device.type,
        "hardware": gpu or f"{torch.get_num_threads()} threads of {processor_name()}",
        "versions": {"torch": version("torch"), "deepspeed": version("deepspeed"), "hpc_recolor": PACKAGE_VERSION},
        "commit": code_commit(),
    }
