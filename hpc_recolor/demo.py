"""`python -m hpc_recolor.demo`: the whole toolkit on the photographs inside pip packages, in minutes."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli

app = cli.command("demo")


@app.default
def demo(
    *,
    config: Annotated[
        Path,
        Parameter(
            help="Run config, by file or name in this package; data.photos and data.held_out are the demo's own."
        ),
    ] = Path("demo"),
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Color photographs that come inside pip packages, then train a small colorizer on tiles of them and show what it
    learned.
    """
    run_config = cli.load(config, flags).run  # bad input is reported before the slow imports
    from hpc_recolor.training.demo_run import color_photographs, describe_result, run_demo

    for path in color_photographs(run_config.folder / f"{run_config.name}-photographs"):
        print(path, flush=True)
    run = run_demo(config, cli.given(flags), on_written=print)
    for path in (run.config, run.metrics, run.losses, run.samples, run.checkpoints):
        print(path)
    print(describe_result(run))


if __name__ == "__main__":
    sys.exit(cli.run(app))
