"""`python -m hpc_recolor.demo`: the whole of the toolkit on the photographs inside pip packages, in minutes."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.signals import StopRequest

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
    overrides = cli.given(flags)
    run = load_config(config, overrides).run
    tiles = run.folder / f"{run.name}-tiles"
    overrides["data"] = {"photos": tiles / "train", "held_out": tiles / "held_out"} | overrides.get("data", {})

    from hpc_recolor.data.package_photos import HELD_OUT_PHOTO, write_tiles  # after the parsing: slow imports
    from hpc_recolor.evaluation.colorizer import colorize_files
    from hpc_recolor.run_folder.metrics_log import read_metrics
    from hpc_recolor.training.trainer import train

    write_tiles(tiles)
    with StopRequest() as request:
        folder = train(load_config(config, overrides), request)
    colorize_files([tiles / HELD_OUT_PHOTO], folder.path, folder.path / "colorized")
    for path in (folder.config, folder.metrics, folder.losses, folder.samples, folder.checkpoints):
        print(path)
    last = [row for row in read_metrics(folder.metrics) if row["kind"] == "held_out"][-1]
    model, gray = last["ab_error"], last["gray_ab_error"]
    print(
        f"ab error on {last['photographs']} held-out tiles: model {model:.2f}, gray copy {gray:.2f} "
        f"({abs(1 - model / gray):.0%} {'lower' if model < gray else 'higher'})"
    )


if __name__ == "__main__":
    sys.exit(cli.run(app))
