"""What an evaluation leaves in a run folder: pictures first, then the JSON that makes them one.

RUN/evaluations/DATA/STEM.json             numbers; without it there is no evaluation
RUN/evaluations/DATA/STEM/NNNNNN.png       photograph NNNNNN as the model colored it
RUN/evaluations/DATA/original/NNNNNN.png   the photograph as the network saw it
RUN/evaluations/DATA/gray/NNNNNN.png       its gray copy
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from hpc_recolor.config import ColorName
from hpc_recolor.evaluation.rows import Kept, to_show
from hpc_recolor.models.color_space import gray_copy, make_pair
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.distributed import World, gather
from hpc_recolor.runtime.errors import UserError

FORMAT = 1
# What may differ and still be the same measurement.
PASSING = ("versions", "device")

ROWS = {"model": "model", "model_own_l": "model, photo's L*", "gray": "gray copy", "mean_color": "mean color"}
COLUMNS = {
    "ciede2000": ("CIEDE2000", ".2f"),
    "ab_error": ("ab error", ".2f"),
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "colorfulness": ("colorfulness", ".1f"),
}


def folder_of(run: RunFolder, data: str) -> Path:
    """Where the evaluations on data of a name lie."""
    return run.path / "evaluations" / data


def check_same_photographs(folder: Path, fingerprint: str) -> None:
    """Raise UserError if evaluations lie there that are of other photographs."""
    for file in sorted(folder.glob("*.json")):
        content = read_content(file)
        if content and content["protocol"].get("fingerprint") != fingerprint:
            raise UserError(
                f"{file} is of other photographs, or these have changed since; move {folder} away, or name the "
                "photographs' folder otherwise"
            )


def read_content(file: Path) -> dict[str, Any] | None:
    """An evaluation, or None if there is none or another version's."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("protocol"), dict)
    return content if known else None


def find_finished(folder: Path, stem: str, protocol: dict[str, Any], first: int) -> dict[str, Any] | None:
    """The same measurement with the same pictures, if it is there already."""
    content = read_content(folder / f"{stem}.json")
    if content is None or _lasting(content["protocol"]) != _lasting(json.loads(json.dumps(protocol))):
        return None
    shown = to_show({image["number"]: image["ciede2000"] for image in content["images"]}, first)
    files = [place / f"{n:06d}.png" for n in shown for place in _places(folder, stem).values()]
    same = shown == {image["number"] for image in content["images"] if image["picture"]}
    return content if same and all(file.is_file() for file in files) else None


def write_results(
    folder: Path, stem: str, content: dict[str, Any], kept: Mapping[int, Kept], color: ColorName, world: World
) -> None:
    """Write pictures, each rank those it has, then the numbers; all ranks together. Raises UserError if it cannot."""
    _all_told(world, lambda: _make_room(folder, stem) if world.is_main else None)
    shown = {image["number"] for image in content["images"] if image["picture"]}
    mine = {number: one for number, one in kept.items() if number in shown}
    _all_told(world, lambda: _write_pictures(_places(folder, stem), mine, color))
    text = json.dumps(finite(content), indent=1, allow_nan=False)
    _all_told(world, lambda: write_atomically(folder / f"{stem}.json", text.encode()) if world.is_main else None)


def finite(value: Any) -> Any:
    """A tree with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """The main numbers of each row, aligned."""
    lines = [["", *(title for title, _ in COLUMNS.values())]]
    for row, metrics in rows.items():
        values = [(metrics[metric], form) for metric, (_, form) in COLUMNS.items()]
        lines.append([ROWS[row], *("-" if value is None else format(value, form) for value, form in values)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _lasting(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key not in PASSING}


def _places(folder: Path, stem: str) -> dict[str, Path]:
    return {"model": folder / stem, "original": folder / "original", "gray": folder / "gray"}


def _make_room(folder: Path, stem: str) -> None:
    """The numbers go before the pictures they are of, so that a kill never leaves numbers beside others' pictures."""
    (folder / f"{stem}.json").unlink(missing_ok=True)
    if (folder / stem).is_dir():
        shutil.rmtree(folder / stem)
    for place in _places(folder, stem).values():
        place.mkdir(parents=True, exist_ok=True)


def _write_pictures(places: Mapping[str, Path], kept: Mapping[int, Kept], color: ColorName) -> None:
    for number, one in kept.items():
        condition, _ = make_pair(one.original[None], color)
        pictures = {"model": one.picture, "original": one.original, "gray": gray_copy(condition, color)[0]}
        for kind, picture in pictures.items():
            write_atomically(places[kind] / f"{number:06d}.png", _png(picture))


def _png(rgb_u8_HWC: Tensor) -> bytes:
    content = BytesIO()
    Image.fromarray(rgb_u8_HWC.numpy()).save(content, "PNG")
    return content.getvalue()


def _all_told(world: World, write: Callable[[], None]) -> None:
    """Write on every rank. What fails on any is a UserError on all, once all are done."""
    failure = None
    try:
        write()
    except OSError as error:
        failure = f"cannot write {error.filename} ({error.strerror}); make room there, and the same command goes on"
    failures = [one for one in gather(world, failure) if one]
    if failures:
        raise UserError(failures[0])
