"""`python -m benchmarks.kernels`: times each op, the eager reference, the compiled reference and kornia."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.kernels.report import Report, line, verdicts
from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError

if TYPE_CHECKING:
    from benchmarks.kernels.cases import Case

app = cli.command("benchmarks.kernels")

RESULTS = Path(__file__).parents[1] / "results"
WRONG = 1


@app.default
def kernels(
    *,
    ops: Annotated[str, Parameter(help="Ops to time, as name,name; all if empty.")] = "",
    quick: Annotated[bool, Parameter(help="Two sizes, nothing compiled, seven rounds.")] = False,
    rounds: Annotated[int, Parameter(validator=Number(gte=7), help="Timed rounds [rounds, 7 or more].")] = 15,
    out: Annotated[
        Path | None, Parameter(help="Folder for the JSON and the plot; by default benchmarks/results.")
    ] = None,
) -> None:
    """Check every op, then time all implementations in turn on random inputs larger than the cache.

    Without a GPU, the CPU implementations only, on one thread. Ops not started after 110 s (CPU: 75 s) are skipped and
    listed. An op that fails its check is not timed, and the exit code is 1.
    """
    folder = out or RESULTS
    if not folder.is_dir():
        raise UserError(f"out={folder}", "no such folder", "create it first")
    import torch

    from benchmarks.kernels.measure import measure, plan_for
    from benchmarks.kernels.timing import find_timer

    cases, timer = chosen(ops), find_timer()
    if timer.device.type == "cpu":
        torch.set_num_threads(1)  # with more threads, all wait whenever another process takes one of their cores
        print("no GPU: the CPU implementations only, on one thread", flush=True)
    report = measure(cases, timer, plan_for(timer, quick, rounds))
    show(report)
    save(report, folder)
    if any(row.wrong for row in report.rows):
        raise SystemExit(WRONG)


def chosen(ops: str) -> "list[Case]":
    """The cases of these names, in the table's order."""
    from benchmarks.kernels.cases import CASES

    names = [name.strip() for name in ops.split(",") if name.strip()]
    legal = [case.name for case in CASES]
    for name in names:
        if name not in legal:
            raise UserError(f"ops={name}", "no such op", f"use some of {', '.join(legal)}")
    return [case for case in CASES if not names or case.name in names]


def show(report: Report) -> None:
    """Print a line per op and size, the targets, and what was skipped."""
    print("Ours: us per call, p20/p50/p80 = share of a large copy. Others: times ours, plain/in a CUDA graph.")
    for row in report.rows:
        print(line(row))
    for text in (*verdicts(report), *(f"left out: {text}" for text in report.all_left_out)):
        print(text)


def save(report: Report, folder: Path) -> None:
    """Write kernels-<device>.json, and the plot if matplotlib is installed."""
    file = folder / f"{report.file_stem}.json"
    file.write_text(report.model_dump_json(indent=2) + "\n")
    try:
        from benchmarks.kernels.plot import plot

        plot(report, file.with_suffix(".png"))
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(app))
