"""The demo: photographs inside pip packages colored with the package's colorizer, and a run on tiles of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from hpc_recolor.config_file import load_config, merge
from hpc_recolor.data.package_photos import HELD_OUT_PHOTO, write_photographs, write_tiles
from hpc_recolor.evaluation.colorizer import colorize_files
from hpc_recolor.evaluation.figures import photograph_table
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.training.train_run import train_run

VIVID = 1.6


def color_photographs(folder: Path) -> list[Path]:
    """Color the photographs with the colorizer of this package, which never saw them.

    Writes faithful/*.png and vivid/*.png, with the vividness of 1 and of VIVID, and a table of all beside the originals
    and their gray copies. Returns these paths. Raises UserError if one of the packages is missing.
    """
    originals = [Image.open(file) for file in sorted(write_photographs(folder / "originals"))]
    columns = {"gray": [photo.convert("L").convert("RGB") for photo in originals]}
    for name, vividness in (("faithful", 1.0), ("vivid", VIVID)):
        colorize_files([folder / "originals"], COLORIZER, folder / name, lambda _: None, vividness)
        columns[name] = [Image.open(file) for file in sorted((folder / name).glob("*.png"))]
    table = folder / "colorized.jpg"
    photograph_table(columns | {"original": originals}).save(table, quality=90)
    return [table, folder / "faithful", folder / "vivid"]


def run_demo(file: Path, overrides: dict[str, Any], on_written: Callable[[Path], None]) -> RunFolder:
    """Write the tiles beside the run, train on them, and color a photograph that no tile is cut from.

    file: the run config; overrides: nested values that replace its own; on_written: called with the colored photograph.
    Raises UserError as the config, the packages and training do.
    """
    run = load_config(file, overrides).run
    tiles = run.folder / f"{run.name}-tiles"
    write_tiles(tiles)
    on_tiles = {"data": {"photos": tiles / "train", "held_out": tiles / "held_out"}}
    folder = train_run(file, merge(on_tiles, overrides))
    colorize_files([tiles / HELD_OUT_PHOTO], folder.path, folder.path / "colorized", on_written)
    return folder


def describe_result(run: RunFolder) -> str:
    """The last held-out ab error of a run beside that of the gray copy, as a sentence."""
    last = [row for row in read_metrics(run.metrics) if row["kind"] == "held_out"][-1]
    model, gray = last["ab_error"], last["gray_ab_error"]
    return (
        f"ab error on {last['photographs']} held-out tiles: model {model:.2f}, gray copy {gray:.2f} "
        f"({abs(1 - model / gray):.0%} {'lower' if model < gray else 'higher'})"
    )
