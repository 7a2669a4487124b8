"""`python -m hpc_recolor.jobs list | status | logs | cancel | restart`: what became of submitted runs."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpc_recolor import cli
from hpc_recolor.launch import slurm_query
from hpc_recolor.launch.follow import Watch, follow, printable, tail
from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission
from hpc_recolor.launch.overview import OVER, Overview, look, overview, runs_in
from hpc_recolor.launch.submission import resubmit
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError

app = cli.command("hpc_recolor.jobs")

COLUMNS = ("run", "job", "state", "epoch", "images/s", "time left", "restarts", "last stop")
COLORS = {"running": "green", "finished": "green", "failed": "red", "unreadable": "red"}

Run = Annotated[Path, Parameter(name="RUN", help="Run folder.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, for scripts.")]


@app.command(name="list")
def list_(
    folder: Annotated[Path, Parameter(name="FOLDER", help="Folder that holds the run folders.")] = Path("runs"),
    /,
    *,
    as_json: AsJson = False,
) -> None:
    """Show all submitted runs in a folder, those submitted first on top."""
    rows, complaint = look(runs_in(folder))
    _complain(complaint)
    if as_json:
        print(json.dumps([_as_dict(row) for row in rows], indent=1))
    elif rows:
        _print_table([_cells(row) for row in rows])
    else:
        print(f"no run in {folder} has been submitted; submit one with: python -m hpc_recolor.submit")


@app.command
def status(run: Run, /, *, as_json: AsJson = False) -> None:
    """Show one run, with all that is known of it."""
    read_submission(JobFolder.of(RunFolder(run)))  # or says what is wrong with it
    (row,), complaint = look([RunFolder(run)])
    _complain(complaint)
    if as_json:
        print(json.dumps(_as_dict(row), indent=1))
        return
    fields = dict(zip(COLUMNS, _cells(row), strict=True)) | {
        "limit": f"{_duration(row.limit_left_s)} left" if row.limit_left_s is not None else "",
        "nodes": row.nodes,
        "checkpoint": str(row.checkpoint or "none yet"),
        "logs": _logs_pattern(row.logs),
        "follow": "" if row.state in OVER else _command("logs", run, "--follow"),
        "restart": _command("restart", run) if row.state in OVER and row.state != "finished" else "",
    }
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            print(f"{name:<{width}}  {value}")


@app.command(name="logs")
def logs_(
    run: Run,
    /,
    *,
    follow_: Annotated[
        bool, Parameter(name="--follow", negative=(), help="Go on until the job has ended; Ctrl-C leaves it running.")
    ] = False,
    rank: Annotated[int | None, Parameter(help="Only this rank's; all ranks' without it.")] = None,
    lines: Annotated[int | None, Parameter(help="Only so many of each rank's last lines.")] = None,
) -> None:
    """Print what the ranks of a run's last job have printed, over all its restarts."""
    submission = read_submission(JobFolder.of(RunFolder(run)))
    paths = _log_paths(submission, rank)
    if lines is not None and lines < 0:
        raise UserError(f"--lines={lines}: use 0 or more")
    starts = {} if lines is None else {number: tail(path, lines) for number, path in paths.items()}
    if follow_:
        return _follow(RunFolder(run), submission, paths, starts)
    if not any(path.exists() for path in paths.values()):
        print(f"job {submission.job} has no logs yet; see {_command('status', run)}", file=sys.stderr)
    with _until_reader_leaves():
        follow(paths, lambda: True, print, starts)


@app.command
def cancel(run: Run, /) -> None:
    """End a run's job, once its state is saved. It is not queued again; `restart` goes on with it."""
    submission = read_submission(JobFolder.of(RunFolder(run)))
    row = overview(RunFolder(run))
    if row.state in OVER:
        raise UserError(f"job {row.job} of {run} is over already ({row.state}); there is nothing to cancel")
    _mark_cancelled(submission)
    has_ranks = row.state in ("running", "ending")
    print(f"job {row.job} is cancelled" + ("; its ranks save their state and leave now" if has_ranks else ""))
    print(f"go on with it later: {_command('restart', run)}")


@app.command
def restart(run: Run, /) -> None:
    """Go on with a run: submit it again as it was, or start it now if it waits after having been queued again."""
    submission = read_submission(JobFolder.of(RunFolder(run)))
    row = overview(RunFolder(run))
    if row.state in OVER:
        submission = resubmit(RunFolder(run.absolute()))  # its paths are read from anywhere
    elif row.reason == "BeginTime":
        # Not at once: SLURM refuses to start a job in the second in which it has taken its last turn's rights away.
        slurm_query.run(["scontrol", "update", f"JobId={row.job}", "StartTime=now+3"])
    else:
        raise UserError(_not_now(row))
    print(f"job      {submission.job}")
    print(f"run      {run}")
    print(f"logs     {_logs_pattern([JobFolder(submission.logs).log(submission.job, 0)])}")
    print(f"follow   {_command('logs', run, '--follow')}")


def _not_now(row: Overview) -> str:
    if row.state == "waiting":
        return f"job {row.job} of {row.run} waits already ({row.why}); cancel it first to submit it anew"
    if row.state == "ending":
        return f"job {row.job} of {row.run} is just ending; try again in a moment"
    return f"job {row.job} of {row.run} is running; cancel it first: {_command('cancel', row.run)}"


def _mark_cancelled(submission: Submission) -> None:
    """Cancel a job, after a note that keeps it from being queued again. No note stays if that cannot be done."""
    note = JobFolder(submission.logs).cancelled(submission.job)
    try:
        note.touch()
    except OSError as error:
        raise UserError(f"{note} cannot be written ({error.strerror}); make room there and cancel again") from None
    try:
        if submission.cluster == "local":
            os.kill(int(submission.job), signal.SIGTERM)
        else:
            slurm_query.run(["scancel", submission.job])
    except ProcessLookupError:
        pass  # it has just ended
    except BaseException:
        note.unlink(missing_ok=True)
        raise


def _follow(run: RunFolder, submission: Submission, paths: dict[int, Path], starts: dict[int, int]) -> None:
    try:
        with _until_reader_leaves():
            follow(paths, Watch(run, submission.job), lambda line: print(line, flush=True), starts)
    except KeyboardInterrupt:
        print(
            f"\njob {submission.job} goes on; follow it again with: {_command('logs', run.path, '--follow')}",
            file=sys.stderr,
        )
        return
    (row,), _ = look([run])
    print(f"job {submission.job}: {' | '.join(filter(None, (row.state, row.last_stop)))}", file=sys.stderr)


@contextmanager
def _until_reader_leaves() -> Iterator[None]:
    """As in `logs RUN | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes it


def _log_paths(submission: Submission, rank: int | None) -> dict[int, Path]:
    if rank is not None and not 0 <= rank < submission.ranks:
        raise UserError(f"--rank={rank}: job {submission.job} has ranks 0 to {submission.ranks - 1}")
    folder = JobFolder(submission.logs)
    return {number: folder.log(submission.job, number) for number in range(submission.ranks) if rank in (None, number)}


def _complain(complaint: str | None) -> None:
    if complaint:
        print(f"states are what the run folders say; {complaint}", file=sys.stderr)


def _command(name: str, run: Path, *flags: str) -> str:
    return shlex.join(["python", "-m", "hpc_recolor.jobs", name, str(run), *flags])


def _logs_pattern(logs: Sequence[Path]) -> str:
    return str(logs[0]) + (f" to {logs[-1].name}" if len(logs) > 1 else "") if logs else ""


def _as_dict(row: Overview) -> dict[str, Any]:
    tree = asdict(row)
    tree |= tree.pop("progress")
    plain: dict[str, Any] = json.loads(json.dumps(tree, default=str))  # paths as text
    return plain


def _cells(row: Overview) -> list[str]:
    progress = row.progress
    epoch = "" if progress.epoch is None else f"{progress.epoch:.1f}/{progress.epochs or '?'}"
    rate = "" if progress.images_per_s is None else f"{progress.images_per_s:.1f}"
    left = "" if progress.time_left_s is None or row.state == "finished" else _duration(progress.time_left_s)
    state = f"{row.state}: {row.why}" if row.why else row.state
    cells = (str(row.run), row.job, state, epoch, rate, left, str(row.restarts), row.last_stop)
    return [printable(cell) for cell in cells]


def _duration(seconds: float | None) -> str:
    minutes, rest_s = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if minutes else f"{rest_s} s"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """For a terminal as wide as that is; else aligned and whole, for other programs."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for row in (COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=SIMPLE_HEAD)
    for name in COLUMNS:
        right = name in ("epoch", "images/s", "time left", "restarts")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*row, style=COLORS.get(row[2].split(":")[0]))
    Console(markup=False, highlight=False, emoji=False).print(table)


if __name__ == "__main__":
    sys.exit(cli.run(app))
