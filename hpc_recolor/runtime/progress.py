"""Progress of long work: a bar on a terminal and in a notebook, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Where no terminal redraws the line, a new one is printed at most this often.
SECONDS_BETWEEN_LINES = 5.0

# What takes longer is worth a line when it is done.
LONG_S = 10.0

# Called with (items done, total).
ProgressCallback = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """A ProgressCallback that shows nothing."""


@dataclass
class Cost:
    """Photographs that were read, and their bytes."""

    photographs: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count a photograph."""
        self.photographs += 1
        self.size_bytes += size_bytes


@contextmanager
def timed(done: str, shown: bool = True, advice: str = "") -> Iterator[Cost]:
    """Yields a counter. Afterwards, if it took long, prints what was done on stderr: "hashed 9 photographs, ...".

    shown: whether this rank prints. advice: what would spare it the next time.
    """
    cost, start_s = Cost(), time.monotonic()
    yield cost
    elapsed_s = time.monotonic() - start_s
    if shown and elapsed_s >= LONG_S:
        size = f", {cost.size_bytes / 1e9:.1f} GB," if cost.size_bytes else ""
        line = f"{done} {cost.photographs:,} photographs{size} in {elapsed_s:.0f} s"
        print("; ".join(filter(None, (line, advice))), file=sys.stderr)


def stderr_console() -> Console:
    """A console that redraws lines only on a terminal: FORCE_COLOR, which many set for colors, would fill logs with
    hundreds of kilobytes of cursor movements."""
    return Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)


def can_redraw(console: Console) -> bool:
    """Whether a bar can be drawn there again and again: on a terminal, and in a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def show_phase(doing: str, shown: bool = True) -> Iterator[None]:
    """While entered, names on a terminal what takes seconds and has no count. Logs get nothing."""
    console = stderr_console()
    with console.status(doing) if shown and can_redraw(console) else nullcontext():
        yield


@contextmanager
def show_progress(doing: str, unit: str = "images", shown: bool = True) -> Iterator[ProgressCallback]:
    """Yields a callback for (done, total). Shows both on stderr, with the rate and the time left."""
    console = stderr_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and can_redraw(console))) as bar:
        task = bar.add_task(doing, total=None)
        line_s = time.monotonic()
        began: tuple[float, int] | None = None  # time and items done at the first call

        def update(done: int, total: int) -> None:
            nonlocal began, line_s
            now_s = time.monotonic()
            began_s, began_at = began = began or (now_s, done)
            rate = (done - began_at) / (now_s - began_s) if now_s > began_s else 0.0
            bar.update(task, completed=done, total=total, description=f"{doing}, {rate:.0f} {unit}/s")
            if shown and not can_redraw(console) and now_s - line_s > SECONDS_BETWEEN_LINES:
                line_s = now_s
                left = f", {(total - done) / rate:.0f} s left" if rate else ""
                line = f"{doing}: {done} of {total}, {rate:.0f} {unit}/s{left}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield update
