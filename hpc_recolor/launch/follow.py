"""Follow the logs of all ranks as they grow, each line prefixed by its rank, and wait for jobs to end."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.overview import Overview, inspect
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError, cannot_read

POLL_S = 0.2
# Intervals between queries of SLURM: while a job runs, and while it seems to end.
QUERY_S = 15.0
QUERY_SOON_S = 2.0
WAIT_POLL_S = 5.0
CHUNK_BYTES = 1 << 20

# Colors, cursor movements and titles (ECMA-48: control sequences, control strings, other escapes), then single control
# characters except tabs. A log must not control the terminal of its reader.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


def follow(
    paths: Mapping[int, Path],
    has_ended: Callable[[], bool],
    write: Callable[[str], None],
    starts: Mapping[int, int] | None = None,
) -> None:
    """Write the lines of all ranks' logs, and those appended until `has_ended` returns True.

    paths: by rank; files need not exist yet. write: receives a line, `rank 0 | ...`, without its line break; lines of a
    rank keep their order, and an incomplete line is held back until it is complete. starts: where to begin in a rank's
    file [bytes]. Raises UserError if a file exists and cannot be read.
    """
    logs = [_Log(path, rank, write, (starts or {}).get(rank, 0)) for rank, path in sorted(paths.items())]
    while True:
        ended = has_ended()  # checked first, so that everything written before the end is read
        grown = [log.read() for log in logs]
        if ended and not any(grown):
            break
        if not any(grown):
            time.sleep(POLL_S)
    for log in logs:
        log.write_rest()


def printable(text: str) -> str:
    """The text without control sequences and control characters, except tabs."""
    return CONTROL.sub("", text)


def tail(path: Path, lines: int) -> int:
    """Offset of the last `lines` lines of a file [bytes]; 0 if it does not exist, or has no more lines than that.

    Raises UserError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            before_last = (offset for offset in _line_breaks(file) if offset != size - 1)
            return next(islice(before_last, lines - 1, None), -1) + 1 if lines else size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _unreadable(path, error) from None


def _line_breaks(file: BinaryIO) -> Iterator[int]:
    """Offsets of a file's line breaks [bytes], the last one first."""
    start = file.seek(0, os.SEEK_END)
    while start:
        size = min(CHUNK_BYTES, start)
        start -= size
        file.seek(start)
        yield from reversed([start + found.start() for found in re.finditer(b"\n", file.read(size))])


class JobWatch:
    """Call it to poll whether a run's job has ended for good; a requeued job has not.

    It may be called often: SLURM is queried at intervals, and at once when ranks have started or ended.
    """

    def __init__(self, run: RunFolder, job: str) -> None:
        self.run, self.job = run, job
        self.history_bytes = -1
        self.query_at_s = 0.0
        self.ended_in_a_row = 0

    def __call__(self) -> bool:
        """Whether the job has ended for good."""
        history_bytes = self._history_bytes()
        if history_bytes == self.history_bytes and time.monotonic() < self.query_at_s:
            return False
        self.history_bytes = history_bytes
        (row,), failure = inspect([self.run])
        self.query_at_s = time.monotonic() + (QUERY_SOON_S if row.state == "ending" or row.has_ended else QUERY_S)
        if row.job != self.job or row.state == "finished":  # submitted again, or nothing left to do
            return True
        # Twice, because SLURM ends a job before it requeues it.
        self.ended_in_a_row = self.ended_in_a_row + 1 if row.has_ended and not failure else 0
        return self.ended_in_a_row > 1

    def _history_bytes(self) -> int:
        try:
            return JobFolder.of(self.run).history.stat().st_size
        except OSError:
            return 0


def wait_until_ended(runs: Sequence[RunFolder]) -> list[Overview]:
    """Wait until the jobs of all runs have ended. Returns the runs' overviews."""
    while True:
        rows, _ = inspect(runs)
        if all(row.has_ended for row in rows):
            return rows
        time.sleep(WAIT_POLL_S)


class _Log:
    """A file that is read to its current end, repeatedly."""

    def __init__(self, path: Path, rank: int, write: Callable[[str], None], start: int) -> None:
        self.path, self.rank, self.write = path, rank, write
        self.offset = start
        self.incomplete = b""

    def read(self) -> bool:
        """Write the complete lines of the next chunk. Returns False if there is none yet."""
        chunk = self._next_chunk()
        *complete, self.incomplete = (self.incomplete + chunk).split(b"\n")
        for line in complete:
            self._write_line(line)
        return bool(chunk)

    def write_rest(self) -> None:
        """Write a last line that has no line break."""
        if self.incomplete:
            self._write_line(self.incomplete)
        self.incomplete = b""

    def _next_chunk(self) -> bytes:
        try:
            with self.path.open("rb") as file:  # reopened each time, else network file systems do not show new data
                file.seek(self.offset)
                chunk = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unreadable(self.path, error) from None
        self.offset += len(chunk)
        return chunk

    def _write_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        # A progress bar overwrites its line after carriage returns: only its last state is shown.
        self.write(f"rank {self.rank} | {printable(text.rpartition(chr(13))[2])}")


def _unreadable(path: Path, error: OSError) -> UserError:
    return cannot_read(f"log {path}", error, "make it readable and follow it again")
