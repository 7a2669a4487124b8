"""`python -m hpc_recolor.study`: all runs of a study, from photographs to one report."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError

app = cli.command("study")


@app.default
def study(
    *,
    configs: Annotated[
        Path, Parameter(help="Folder of run configs, one per run: its path, or its name in configs/.")
    ] = Path("study/small"),
    photos: Annotated[
        Path | None,
        Parameter(
            help="Folder with `general` and `cars` in it, each a folder or a .tar or .zip of photographs; by default "
            "the photographs inside pip packages."
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="The report; by default report.html beside the runs.")] = None,
    seeds: Annotated[
        int,
        Parameter(
            help="Runs of each config, with run.seed 0, 1, ...; 1: the config's own [1 or more].",
            validator=Number(gte=1),
        ),
    ] = 1,
    recognition: Annotated[bool, Parameter(negative=(), help="Measure as `evaluate --recognition` does, too.")] = False,
    yes: Annotated[bool, Parameter(negative=(), help="Start; without it, only the plan is shown.")] = False,
) -> int:
    """Prepare the photographs, train all runs, evaluate them, and write the report.

    Without --yes, shows what that comes to, and starts nothing. Each step is a command of its own, which is printed.
    The same command resumes where the last one stopped. Exit code: of the first command that failed, or 0.
    """
    from hpc_recolor.launch.study_plan import describe_study, plan_study, run_commands  # slow imports

    if not yes:
        print(*describe_study(configs, photos, seeds), sep="\n", flush=True)
        raise UserError("--yes", "missing, so nothing was started", "add it to start all this")
    return run_commands(plan_study(configs, photos, out, seeds, recognition))


if __name__ == "__main__":
    sys.exit(cli.run(app))
