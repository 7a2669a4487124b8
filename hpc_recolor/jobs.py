"""`python -m hpc_recolor.jobs list | status | logs | cancel | restart`: watch and control submitted runs."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.launch.cancel import cancel as cancel_run
from hpc_recolor.launch.follow import JobWatch, follow, printable, tail
from hpc_recolor.launch.job_folder import JobFolder, Submission, read_submission, runs_of_sweep
from hpc_recolor.launch.overview import Overview, inspect, inspect_one, runs_in
from hpc_recolor.launch.restart import restart as restart_run
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import TimeAccount, describe
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped, shell_command
from hpc_recolor.runtime.terminal_tables import Heading, Row, print_table

app = cli.command("jobs")

SHOWN_STARTS = 10
COLORS = {"running": "green", "finished": "green", "failed": "red", "unreadable": "red"}

RunArgument = Annotated[Path, Parameter(name="RUN", help="Run folder.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, for scripts.")]


@app.command(name="list")
def list_(
    folder: Annotated[Path, Parameter(name="FOLDER", help="Folder that holds the run folders.")] = Path("runs"),
    /,
    *,
    as_json: AsJson = False,
) -> None:
    """Show all submitted runs in a folder, oldest submission first."""
    rows, failure = inspect(runs_in(folder))
    _warn(failure)
    if as_json:
        print(json.dumps([_as_dict(row) for row in rows], indent=1))
    elif rows:
        _print_table(rows)
    else:
        print(f"no submitted run in {folder}; submit one with: python -m hpc_recolor.submit")


@app.command
def status(run: RunArgument, /, *, as_json: AsJson = False) -> None:
    """Show one run in full."""
    _require_run(run)
    (row,), failure = inspect([RunFolder(run)])
    _warn(failure)
    if as_json:
        print(json.dumps(_as_dict(row), indent=1))
        return
    fields = _cells(row) | {
        "limit": f"{_duration(row.limit_left_s)} left" if row.limit_left_s is not None else "",
        "time": _time(row),
        **_starts(row),
        "nodes": row.nodes,
        "checkpoint": str(row.checkpoint or "none yet"),
        "logs": _logs_pattern(row.logs),
        "follow": "" if row.has_ended else _command("logs", run, "--follow"),
        "restart": _command("restart", run) if row.has_ended and row.state != "finished" else "",
    }
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            print(f"{name:<{width}}  {value}")


@app.command(name="logs")
def logs_(
    run: RunArgument,
    /,
    *,
    follow_: Annotated[
        bool,
        Parameter(name="--follow", negative=(), help="Continue until the job has ended; Ctrl-C leaves it running."),
    ] = False,
    rank: Annotated[int | None, Parameter(help="Only this rank [default: all ranks].")] = None,
    lines: Annotated[int | None, Parameter(help="Only that many last lines of each rank.")] = None,
) -> None:
    """Print the output of the ranks of a run's last job, over all its restarts."""
    submission = _require_run(run)
    paths = _log_paths(submission, rank)
    if lines is not None and lines < 0:
        raise UserError(f"--lines={lines}", "negative", "use 0 or more")
    offsets = {} if lines is None else {number: tail(path, lines) for number, path in paths.items()}
    if follow_:
        return _follow(RunFolder(run), submission, paths, offsets)
    if not any(path.exists() for path in paths.values()):
        print(f"job {submission.job} has no logs yet; see {_command('status', run)}", file=sys.stderr)
    with _until_reader_leaves():
        follow(paths, lambda: True, print, offsets)


@app.command
def cancel(run: RunArgument, /) -> None:
    """Save the state of a run, or of all runs of a sweep, and end its job. It is not requeued; `restart` resumes it."""
    tasks = runs_of_sweep(JobFolder.of(RunFolder(run)))
    if tasks and all(row.has_ended for row in inspect(tasks)[0]):
        raise UserError(str(run), "all runs of this sweep have already ended", "nothing to cancel")
    for task in tasks:
        if not inspect_one(task).has_ended:
            _cancel(task.path)
    if not tasks:
        _cancel(run)


def _cancel(run: Path) -> None:
    before = cancel_run(RunFolder(run))
    has_ranks = before.state in ("running", "ending")
    print(f"job {before.job} cancelled" + ("; its ranks save their state and exit" if has_ranks else ""))
    print(f"resume it later: {_command('restart', run)}")


@app.command
def restart(run: RunArgument, /) -> None:
    """Resume a run: submit it again unchanged, or start it now if it waits after a requeue."""
    _require_run(run)
    submission = restart_run(RunFolder(run))
    print(f"job      {submission.job}")
    print(f"run      {run}")
    print(f"logs     {_logs_pattern([JobFolder(submission.logs).log(submission.job, 0)])}")
    print(f"follow   {_command('logs', run, '--follow')}")


def _require_run(run: Path) -> Submission:
    """The last submission of a run. Raises UserError for a folder that is not a submitted run, or is a sweep's."""
    home = JobFolder.of(RunFolder(run))
    if tasks := runs_of_sweep(home):
        raise UserError(str(run), f"is a sweep of {len(tasks)} runs", f"name one of them, such as {tasks[0].path}")
    return read_submission(home)


def _follow(run: RunFolder, submission: Submission, paths: dict[int, Path], offsets: dict[int, int]) -> None:
    try:
        with _until_reader_leaves():
            follow(paths, JobWatch(run, submission.job), lambda line: print(line, flush=True), offsets)
    except KeyboardInterrupt:
        print(
            f"\njob {submission.job} continues; follow it again with: {_command('logs', run.path, '--follow')}",
            file=sys.stderr,
        )
        return
    (row,), _ = inspect([run])
    print(f"job {submission.job}: {' | '.join(filter(None, (row.state, row.last_stop)))}", file=sys.stderr)


@contextmanager
def _until_reader_leaves() -> Iterator[None]:
    """Ends the body quietly when the reader of stdout exits, as in `logs RUN | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes it


def _log_paths(submission: Submission, rank: int | None) -> dict[int, Path]:
    if rank is not None and not 0 <= rank < submission.ranks:
        raise UserError(
            f"--rank={rank}", f"job {submission.job} has ranks 0 to {submission.ranks - 1}", "use one of them"
        )
    folder = JobFolder(submission.logs)
    return {number: folder.log(submission.job, number) for number in range(submission.ranks) if rank in (None, number)}


def _warn(failure: UserError | None) -> None:
    if failure:
        print(f"states are read from the run folders alone; {failure}", file=sys.stderr)


def _command(name: str, run: Path, *flags: str) -> str:
    return shell_command("python", "-m", "hpc_recolor.jobs", name, run, *flags)


def _logs_pattern(logs: Sequence[Path]) -> str:
    return str(logs[0]) + (f" to {logs[-1].name}" if len(logs) > 1 else "") if logs else ""


def _as_dict(row: Overview) -> dict[str, Any]:
    tree = asdict(row)
    tree |= tree.pop("progress") | {"goodput": _total(row).goodput if row.time else None}
    plain: dict[str, Any] = json.loads(json.dumps(tree, default=str))  # paths as text
    return plain


def _state(row: Overview) -> str:
    return f"{row.state}: {row.why}" if row.why else row.state


def _epoch(row: Overview) -> str:
    progress = row.progress
    return "" if progress.epoch is None else f"{progress.epoch:.1f}/{progress.epochs or '?'}"


def _rate(row: Overview) -> str:
    return "" if row.progress.images_per_s is None else f"{row.progress.images_per_s:.1f}"


def _time_left(row: Overview) -> str:
    left_s = row.progress.time_left_s
    return "" if left_s is None or row.state == "finished" else _duration(left_s)


def _total(row: Overview) -> TimeAccount:
    return sum(row.time, TimeAccount())


def _goodput(row: Overview) -> str:
    return f"{_total(row).goodput:.0%}" if row.time else ""


def _time(row: Overview) -> str:
    return f"{_describe(_total(row))} since it was first submitted" if row.time else ""


def _starts(row: Overview) -> dict[str, str]:
    """A line for each of the last starts, if there is more than one."""
    numbered = list(enumerate(row.time, 1))[-SHOWN_STARTS:] if len(row.time) > 1 else []
    return {f"start {n}" if one.starting else "since then": _describe(one) for n, one in numbered}


def _describe(account: TimeAccount) -> str:
    return f"{describe(account)} of {_duration(account.total)}"


def _duration(seconds: float | None) -> str:
    minutes, rest_s = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if minutes else f"{rest_s} s"


class Column(NamedTuple):
    """A column of `jobs list`, and a line of `jobs status`."""

    heading: Heading
    cell: Callable[[Overview], str]


COLUMNS = (
    Column(Heading("run", folds=True), lambda row: str(row.run)),
    Column(Heading("job"), lambda row: row.job),
    Column(Heading("state", folds=True), _state),
    Column(Heading("epoch", is_number=True), _epoch),
    Column(Heading("images/s", is_number=True), _rate),
    Column(Heading("time left", is_number=True), _time_left),
    Column(Heading("goodput", is_number=True), _goodput),
    Column(Heading("restarts", is_number=True), lambda row: str(row.restarts)),
    Column(Heading("last stop", folds=True), lambda row: row.last_stop),
)


def _cells(row: Overview) -> dict[str, str]:
    return {column.heading.name: escaped(printable(column.cell(row))) for column in COLUMNS}


def _print_table(rows: Sequence[Overview]) -> None:
    """Fits the table to a terminal; prints it aligned and unwrapped for other programs."""
    cells = [[*_cells(row).values()] for row in rows]
    if sys.stdout.isatty():
        styled = [Row(of_row, COLORS.get(row.state)) for of_row, row in zip(cells, rows, strict=True)]
        return print_table([column.heading for column in COLUMNS], styled)
    lines = [[column.heading.name for column in COLUMNS], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(cli.run(app))
