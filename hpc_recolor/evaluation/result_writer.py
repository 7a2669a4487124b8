"""Writes an evaluation: images first, then the JSON that makes them one."""

import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from hpc_recolor.config import ColorName
from hpc_recolor.evaluation.measurements import KeptImage, to_show
from hpc_recolor.evaluation.metric_registry import METHODS, METRICS
from hpc_recolor.evaluation.results import (
    IMAGE_KINDS,
    Evaluation,
    ImageKind,
    Protocol,
    evaluation_file,
    image_file,
    image_folder,
    read_fingerprint,
    read_if_whole,
)
from hpc_recolor.models.color_space import gray_copy, make_pair
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.distributed import World, gather
from hpc_recolor.runtime.errors import UserError


def name_for(results: Path, name: str, fingerprint: str) -> str:
    """The name that evaluations of photographs get beside others: `name`, with a part of their fingerprint after it if
    `name` stands for other photographs, such as those of another folder of that name, or of this one before a change.
    """
    known = (read_fingerprint(file) for file in evaluation_file(results, name, "any").parent.glob("*.json"))
    return f"{name}-{fingerprint[:8]}" if {*known} - {None, fingerprint} else name


def find_finished(file: Path, protocol: Protocol, first: int) -> Evaluation | None:
    """The same measurement with the same images, if it was written already."""
    evaluation = read_if_whole(file)
    if evaluation is None or not evaluation.protocol.measures_the_same_as(protocol):
        return None
    errors = {image.number: image.value("ciede2000") for image in evaluation.images}
    shown = to_show({number: error for number, error in errors.items() if error is not None}, first)
    same = shown == {image.number for image in evaluation.images if image.picture}
    files = (image_file(file, kind, number) for number in shown for kind in IMAGE_KINDS)
    return evaluation if same and all(one.is_file() for one in files) else None


def write_results(
    file: Path, evaluation: Evaluation, kept: Mapping[int, KeptImage], color: ColorName, world: World
) -> None:
    """Write images, each rank its own, then the numbers; all ranks together.

    file: the JSON. Raises UserError on all ranks if one of them cannot write.
    """
    _on_all(world, lambda: _make_folders(file) if world.is_main else None)
    shown = {image.number for image in evaluation.images if image.picture}
    _on_all(world, lambda: _write_images(file, {n: one for n, one in kept.items() if n in shown}, color))
    _on_all(world, lambda: write_atomically(file, evaluation.to_json()) if world.is_main else None)


def summary_table(rows: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """The main metrics of each method: lines of cells, the first of headings. rows: by method and metric."""
    measured = {metric for means in rows.values() for metric in means}
    columns = [metric for metric in METRICS if metric.short and metric.key in measured]
    names = {method.key: method.name for method in METHODS}
    lines = [["", *(metric.short for metric in columns)]]
    for method, means in rows.items():
        values = [(means[metric.key], metric.digits) for metric in columns]
        lines.append([names[method], *("-" if value is None else f"{value:.{digits}f}" for value, digits in values)])
    return lines


def front_table(evaluation: Evaluation) -> list[list[str]]:
    """The front from faithful to vivid: lines of cells, the first of headings.

    CIEDE2000 is also given as a share of the gray copy's, and colorfulness as a share of the originals'.
    """
    gray, originals = evaluation.gray_ciede2000, evaluation.original_colorfulness
    lines = [["vividness", "CIEDE2000", "of gray", "colorfulness", "of originals"]]
    for point in evaluation.front:
        color, colorful = point.ciede2000, point.colorfulness
        cells = (color, 3), (_share(color, gray), 3), (colorful, 1), (_share(colorful, originals), 3)
        shown = ("-" if value is None else f"{value:.{digits}f}" for value, digits in cells)
        lines.append([f"{point.vividness:g}", *shown])
    return lines


def _share(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def _make_folders(file: Path) -> None:
    """The numbers are removed before their images, so that a kill never leaves numbers beside other images."""
    file.unlink(missing_ok=True)
    if image_folder(file, "model").is_dir():
        shutil.rmtree(image_folder(file, "model"))
    for kind in IMAGE_KINDS:
        image_folder(file, kind).mkdir(parents=True, exist_ok=True)


def _write_images(file: Path, kept: Mapping[int, KeptImage], color: ColorName) -> None:
    for number, one in kept.items():
        condition, _ = make_pair(one.original[None], color)
        images: dict[ImageKind, Tensor] = {
            "model": one.image,
            "original": one.original,
            "gray": gray_copy(condition, color)[0],
        }
        for kind, image in images.items():
            write_atomically(image_file(file, kind, number), _png(image))


def _png(rgb_u8_HWC: Tensor) -> bytes:
    content = BytesIO()
    Image.fromarray(rgb_u8_HWC.numpy()).save(content, "PNG")
    return content.getvalue()


def _on_all(world: World, write: Callable[[], None]) -> None:
    """Write on every rank. A failure on any is a UserError on all, once all are done."""
    failure: tuple[str, str] | None = None
    try:
        write()
    except OSError as error:
        failure = str(error.filename), f"cannot write ({error.strerror})"
    failures = [one for one in gather(world, failure) if one]
    if failures:
        path, problem = failures[0]
        raise UserError(path, problem, "make room there and run the same command again")
