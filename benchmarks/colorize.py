"""`python -m benchmarks.colorize`: seconds and memory that `colorize` takes for one large photograph."""

import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from PIL import Image

from hpc_recolor import cli

app = cli.command("benchmarks.colorize")

MIB = 2**20
NOISE = 12  # as of a camera's sensor [levels]; it decides how well PNG compresses


@app.default
def colorize(
    *,
    megapixels: Annotated[
        float, Parameter(validator=Number(gte=0.1, lte=100), help="Size of the photograph [0.1 to 100].")
    ] = 96,
) -> None:
    """Color a photograph of 3:2 with the colorizer of the package, and print what reading, coloring and writing took.

    Memory is the most that the process ever held, above what it held before, with a small photograph colored.
    """
    from hpc_recolor.evaluation.colorizer import colorize_files
    from hpc_recolor.models.weights_package import COLORIZER

    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.jpg"), Path(folder, "large.jpg")
        with ProcessPoolExecutor(1, get_context("spawn")) as painter:  # whose memory is not this process's
            small.write_bytes(painter.submit(paint, 0.1).result())
            large.write_bytes(painter.submit(paint, megapixels).result())
        colorize_files([small], COLORIZER, Path(folder, "out"), lambda written: None)
        before = _reset_peak()
        start_s, start_cpu_s = time.monotonic(), time.process_time()
        colorize_files([large], COLORIZER, Path(folder, "out"), lambda written: None)
        seconds, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
        grown = _memory("VmHWM") - before
    print(
        f"{megapixels:g} megapixels: {seconds:.1f} s, {cpu_s:.1f} s of processors, {grown / MIB:.0f} MiB above "
        f"{before / MIB:.0f} MiB, which is {grown / (megapixels * 1e6):.1f} bytes a pixel"
    )


def paint(megapixels: float) -> bytes:
    """A gray photograph of 3:2 with the noise of a camera, as a JPEG."""
    width = round(sqrt(megapixels * 1.5e6))
    height = round(width / 1.5)
    noise = np.random.default_rng(0)
    rows = [
        np.clip(127 + 100 * np.sin(np.arange(width) / 500 + top / 300) + noise.normal(0, NOISE, width), 0, 255)
        for top in range(height)
    ]
    gray = np.stack([row.astype(np.uint8) for row in rows])
    written = BytesIO()
    Image.fromarray(gray).convert("RGB").save(written, "JPEG", quality=92)
    return written.getvalue()


def _reset_peak() -> int:
    """Forget the most memory that this process ever held, and return what it holds [bytes] (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(cli.run(app))
