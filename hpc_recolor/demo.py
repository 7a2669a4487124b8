"""`python -m hpc_recolor.demo`: the whole toolkit on the photographs inside pip packages, in minutes."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.models import weights_package

app = cli.command("demo")


@app.default
def demo(
    *,
    config: Annotated[
        Path | None,
        Parameter(
            help="Run config, by file or name in this package; data.photos and data.held_out are the demo's own. By "
            "default demo-backbone where the extra `backbone` is installed, demo elsewhere."
        ),
    ] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Color photographs that come inside pip packages, then train a small colorizer on tiles of them and show what it
    learned.
    """
    config = config or default_config()
    run_config = cli.load(config, flags).run  # bad input is reported before the slow imports
    from hpc_recolor.training.demo_run import color_photographs, describe_result, run_demo

    for path in color_photographs(run_config.folder / f"{run_config.name}-photographs"):
        print(path, flush=True)
    run = run_demo(config, cli.given(flags), on_written=print)
    for path in (run.config, run.metrics, run.losses, run.samples, run.checkpoints):
        print(path)
    print(describe_result(run))


def default_config() -> Path:
    """The name of the config that makes the better pictures of those that can run here."""
    return Path("demo-backbone" if weights_package.package_file("tf_efficientnet_lite0") else "demo")


if __name__ == "__main__":
    sys.exit(cli.run(app))
