"""`python -m benchmarks.portable FILE`: an exported colorizer beside ours, on the photographs inside pip packages."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from PIL import Image

from hpc_recolor import cli

if TYPE_CHECKING:
    from hpc_recolor.evaluation.colorizer import Colorizer

app = cli.command("benchmarks.portable")


@app.default
def portable(
    file: Annotated[Path, Parameter(name="FILE", help="What `checkpoint export --format onnx` wrote.")],
    /,
    *,
    run: Annotated[Path | None, Parameter(help="What it was made of; by default the package's colorizer.")] = None,
    rounds: Annotated[int, Parameter(validator=Number(gte=1), help="Rounds over all photographs.")] = 3,
) -> None:
    """Print CIEDE2000 between an ONNX file's colors and ours, mean and worst, and the ratio of processor times.

    In turn, on one thread each. Of the time that the file takes, loading it is not counted.
    """
    import torch

    from hpc_recolor.data.package_photos import write_scenes
    from hpc_recolor.evaluation.colorizer import Colorizer

    torch.set_num_threads(1)
    colorize = Colorizer.load(run) if run else Colorizer.load()
    theirs = _onnx(file, colorize)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder))
        photos = [np.array(Image.open(photo).convert("RGB")) for photo in sorted(Path(folder).glob("*.png"))]
    differences, ratios = [], []
    for number in range(rounds):
        for photo in photos:
            (ours, our_s), (other, other_s) = _timed(colorize, photo), _timed(theirs, photo)
            ratios.append(our_s / other_s)
            if not number:
                differences.append(_difference(ours, other))
    print(
        f"{len(photos)} photographs: CIEDE2000 {mean(differences):.3f} in the mean, {max(differences):.3f} at worst; "
        f"{median(ratios):.2f} times as fast as ours"
    )


def _onnx(file: Path, colorize: "Colorizer") -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    vividness = np.array(colorize.vividness, np.float32)
    return lambda photo: session.run(None, {"rgb": photo[None], "vividness": vividness})[0][0]


def _timed(color: Callable[[Any], Any], photo: Any) -> tuple[Any, float]:
    """What was colored, and seconds of processors."""
    started_s = time.process_time()
    colored = color(photo)
    return colored, time.process_time() - started_s


def _difference(one: Any, other: Any) -> float:
    import torch

    from recolor_kernels import color_metrics

    return float(color_metrics(torch.from_numpy(one)[None], torch.from_numpy(other)[None]).ciede2000)


if __name__ == "__main__":
    sys.exit(cli.run(app))
