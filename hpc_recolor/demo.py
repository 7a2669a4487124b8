"""`python -m hpc_recolor.demo`: the whole toolkit on the photographs inside pip packages, in minutes."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli

app = cli.command("hpc_recolor.demo")


@app.default
def demo(
    *,
    config: Annotated[Path, Parameter(help="Run config; data.photos and data.held_out are the demo's own.")] = Path(
        "configs/demo.yaml"
    ),
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Train a small colorizer on tiles of photographs that come inside pip packages, and show what it learned."""
    cli.load(config, flags)  # bad input is reported before the slow imports
    from hpc_recolor.training.demo_run import describe_result, run_demo

    run = run_demo(config, cli.given(flags), on_written=print)
    for path in (run.config, run.metrics, run.losses, run.samples, run.checkpoints):
        print(path)
    print(describe_result(run))


if __name__ == "__main__":
    sys.exit(cli.run(app))
