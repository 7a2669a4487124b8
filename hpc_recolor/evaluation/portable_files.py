"""Colorizers as single files that need neither this package nor its config: ONNX, and torch.export's .pt2.

The only module that imports ONNX's packages.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpc_recolor.evaluation.colorizer import Colorizer
from hpc_recolor.evaluation.portable_colorizer import PortableColorizer
from hpc_recolor.run_folder.files import fsync, rename_over, temporary_name
from hpc_recolor.runtime.errors import UserError, cannot_write
from recolor_kernels import color_metrics

PortableFormat = Literal["onnx", "torch"]
SUFFIXES: dict[PortableFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
PACKAGES: dict[PortableFormat, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}

RGB, VIVIDNESS, COLORED = "rgb", "vividness", "colored"
SIDES = ("photographs", "height", "width")  # the sizes that are free
INPUT = f"{RGB}: uint8 ({', '.join(SIDES)}, 3), sRGB; {VIVIDNESS}: float32 (), 0 or more"
OUTPUT = f"{COLORED}: uint8 ({', '.join(SIDES)}, 3), sRGB"

# Mean CIEDE2000 between the file's colors and ours beyond which it is not kept. Rounding comes to less than 0.1.
MOST_DIFFERENCE = 0.5


def check_packages(kind: PortableFormat) -> None:
    """Raises UserError if a package that writes or checks files of this format is not installed."""
    for name in PACKAGES[kind]:
        if find_spec(name) is None:
            raise UserError(f"format={kind}", f"the package {name} is not installed", "pip install 'hpc-recolor[onnx]'")


def write_portable(colorizer: Colorizer, notes: dict[str, str], target: Path, kind: PortableFormat) -> float:
    """Write a colorizer to `target`, with notes by name, and compare what the file colors with what `colorizer` does.

    Returns their mean CIEDE2000. An existing file is replaced. Raises UserError, with nothing written, if the network
    cannot be exported, if colors differ by more than MOST_DIFFERENCE, or if the disk refuses the file.
    """
    written = temporary_name(target)
    write, color = (_write_onnx, color_by_onnx) if kind == "onnx" else (_write_torch, color_by_torch)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _refusing(kind):
            write(_program(colorizer), notes, written)
        difference = _difference(colorizer, color(written, _painting(), colorizer.vividness))
        if difference > MOST_DIFFERENCE:
            problem = f"its colors differ from ours by {difference:.2f} CIEDE2000 in the mean"
            raise UserError(f"format={kind}", problem, "use --format safetensors")
        fsync(written)
        rename_over(written, target)
    except OSError as error:
        error.filename = str(target)
        raise cannot_write(f"out={target}", error, "name a place that is writable, with enough space") from None
    finally:
        written.unlink(missing_ok=True)
    return difference


def color_by_onnx(file: Path, rgb_u8_HWC: NDArray[np.uint8], vividness: float) -> Tensor:
    """A photograph, uint8 (H,W,3), colored by an ONNX file: uint8 (H,W,3)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (colored,) = session.run([COLORED], {RGB: rgb_u8_HWC[None], VIVIDNESS: np.array(vividness, np.float32)})
    return torch.from_numpy(colored[0])


def color_by_torch(file: Path, rgb_u8_HWC: NDArray[np.uint8], vividness: float) -> Tensor:
    """The same by a .pt2 file."""
    with file.open("rb") as stream:  # a path would have to end in .pt2
        program = torch.export.load(stream)
    colored: Tensor = program.module()(torch.from_numpy(rgb_u8_HWC[None]), torch.tensor(vividness))
    return colored[0]


def _program(colorizer: Colorizer) -> torch.export.ExportedProgram:
    """The colorizer as torch.export writes it down, for photographs of any number and size."""
    module = PortableColorizer(colorizer).eval()
    example = (torch.zeros(2, 60, 80, 3, dtype=torch.uint8), torch.tensor(colorizer.vividness))
    sides = {axis: torch.export.Dim(name) for axis, name in enumerate(SIDES)}
    with torch.no_grad():
        module(*example)  # fills the cached tables of color, which are constants of the program
        return torch.export.export(module, example, dynamic_shapes=(sides, None))


def _write_onnx(program: torch.export.ExportedProgram, notes: dict[str, str], file: Path) -> None:
    exported = torch.onnx.export(program, input_names=[RGB, VIVIDNESS], output_names=[COLORED], verbose=False)
    assert exported is not None
    exported.model.metadata_props.update(notes)
    exported.save(file)


def _write_torch(program: torch.export.ExportedProgram, notes: dict[str, str], file: Path) -> None:
    with file.open("wb") as stream:
        torch.export.save(program, stream, extra_files=dict(notes))


@contextmanager
def _refusing(kind: PortableFormat) -> Iterator[None]:
    """Turns what torch raises while it exports, of any type, into a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            yield
    except (OSError, UserError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"format={kind}", f"this generator cannot be exported ({reason})", "use --format safetensors"
        ) from error


def _painting() -> NDArray[np.uint8]:
    """A gray picture of soft shapes with edges and the grain of a photograph, uint8 (90,120,3)."""
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    gray = 0.5 + 0.3 * np.sin(9 * x + 4 * y) * np.cos(7 * y) + 0.2 * ((x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.06)
    gray += np.random.default_rng(0).normal(0, 0.02, gray.shape)
    return np.repeat((255 * gray.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def _difference(colorizer: Colorizer, colored_u8_HWC: Tensor) -> float:
    """Mean CIEDE2000 of the painting, colored by a file, against our own."""
    ours = torch.from_numpy(np.array(colorizer(Image.fromarray(_painting()))))
    return float(color_metrics(colored_u8_HWC[None], ours[None]).ciede2000)


def notes_of(card: dict[str, Any], license_text: str) -> dict[str, str]:
    """What a file says of itself, by name: the card of the generator as JSON, the vividness it is to be used with, and
    the license of its weights."""
    own = {"input": INPUT, "output": OUTPUT}
    kept = {key: value for key, value in card.items() if key not in ("weights", "load", "sha256")}
    return {"card": json.dumps(kept | own), VIVIDNESS: f"{card['vividness']:g}", "license": license_text}
