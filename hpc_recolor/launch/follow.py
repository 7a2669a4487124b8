"""Logs of all ranks as they grow, line by line behind the rank's number."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.overview import OVER, look
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError

POLL_S = 0.2
ASK_AGAIN_S = 15.0
ASK_SOON_S = 2.0
CHUNK_BYTES = 1 << 20

# Colors, cursor movements and titles (ECMA-48: control sequences, control strings, other escapes), then single
# characters that a terminal obeys, but for tabs. A log is not to move the cursor of whoever reads it.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


def follow(
    paths: Mapping[int, Path],
    is_over: Callable[[], bool],
    write: Callable[[str], None],
    starts: Mapping[int, int] | None = None,
) -> None:
    """Write what the files of ranks hold, and what is appended to them, until `is_over`, and then what is left.

    paths: by rank; files may not be there yet. write: gets a line, `rank 0 | ...`, without its line break; a rank's
    lines keep their order, and one that has no end yet waits for it. starts: where to begin in a rank's file [bytes].
    Raises UserError if a file is there and cannot be read.
    """
    logs = [_Log(path, rank, write, (starts or {}).get(rank, 0)) for rank, path in sorted(paths.items())]
    while True:
        over = is_over()  # asked first, so that what was written before the end is read after it
        grown = [log.read() for log in logs]
        if over and not any(grown):
            break
        if not any(grown):
            time.sleep(POLL_S)
    for log in logs:
        log.write_rest()


def printable(text: str) -> str:
    """Without what a terminal would obey instead of showing it."""
    return CONTROL.sub("", text)


def tail(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin [bytes]; 0 if it is not there, or has no more than these."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            before_last = (place for place in _line_breaks(file) if place != size - 1)
            return next(islice(before_last, lines - 1, None), -1) + 1 if lines else size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _unreadable(path, error) from None


def _line_breaks(file: BinaryIO) -> Iterator[int]:
    """Where a file has line breaks [bytes], the last one first."""
    start = file.seek(0, os.SEEK_END)
    while start:
        size = min(CHUNK_BYTES, start)
        start -= size
        file.seek(start)
        yield from reversed([start + found.start() for found in re.finditer(b"\n", file.read(size))])


class Watch:
    """Called as often as one likes: whether a run's job has ended for good. One that is queued again has not.

    SLURM is asked now and then, and at once when ranks have started or ended.
    """

    def __init__(self, run: RunFolder, job: str) -> None:
        self.run, self.job = run, job
        self.history_bytes = -1
        self.ask_at_s = 0.0
        self.over_in_a_row = 0

    def __call__(self) -> bool:
        history_bytes = self._history_bytes()
        if history_bytes == self.history_bytes and time.monotonic() < self.ask_at_s:
            return False
        self.history_bytes = history_bytes
        (row,), complaint = look([self.run])
        self.ask_at_s = time.monotonic() + (ASK_SOON_S if row.state in ("ending", *OVER) else ASK_AGAIN_S)
        if row.job != self.job or row.state == "finished":  # submitted anew, or nothing left to do
            return True
        # Twice, since SLURM ends a job before it queues it again.
        self.over_in_a_row = self.over_in_a_row + 1 if row.state in OVER and not complaint else 0
        return self.over_in_a_row > 1

    def _history_bytes(self) -> int:
        try:
            return JobFolder.of(self.run).history.stat().st_size
        except OSError:
            return 0


class _Log:
    """A file that is read as far as it goes, again and again."""

    def __init__(self, path: Path, rank: int, write: Callable[[str], None], start: int) -> None:
        self.path, self.rank, self.write = path, rank, write
        self.place = start
        self.rest = b""

    def read(self) -> bool:
        """Write the whole lines of the next piece. False if there is no more now."""
        piece = self._next_piece()
        *whole, self.rest = (self.rest + piece).split(b"\n")
        for line in whole:
            self._tell(line)
        return bool(piece)

    def write_rest(self) -> None:
        """Write the last line, if it came without an end."""
        if self.rest:
            self._tell(self.rest)
        self.rest = b""

    def _next_piece(self) -> bytes:
        try:
            with self.path.open("rb") as file:  # anew each time: only then do network file systems look for more
                file.seek(self.place)
                piece = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unreadable(self.path, error) from None
        self.place += len(piece)
        return piece

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        # A bar of progress returns to the start of its line: what stands there at last counts.
        self.write(f"rank {self.rank} | {printable(text.rpartition(chr(13))[2])}")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"log {path} cannot be read ({error.strerror}); make it readable, and follow it again")
