"""Image grids: photographs in rows; gray copy, models and original in columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_recolor.evaluation.results import ImageScores, StoredEvaluation
from hpc_recolor.reporting.numbers import isolated, number
from hpc_recolor.reporting.runs import Run
from hpc_recolor.reporting.thumbnails import Thumbnails
from hpc_recolor.runtime.output import escaped

EXTREMES = 20


@dataclass(frozen=True)
class Grid:
    """A grid, as data for the page's script. title: above it; shown of photographs: how many rows it has.

    content: columns (label, run number or None) and rows (name, note, gray, original, and one cell a column:
    number of the thumbnail and text, or None).
    """

    id: str
    title: str
    run: Run | None
    shown: int
    photographs: int
    content: dict[str, Any]


def comparison_grids(runs: Sequence[Run], data: str | None, images: int, thumbnails: Thumbnails) -> list[Grid]:
    """Last epochs side by side; runs that were measured on other photographs get a grid of their own."""
    groups: dict[tuple[str, ...], list[tuple[Run, StoredEvaluation]]] = {}
    for run in runs:
        last = run.last(data)
        if last:
            groups.setdefault(tuple(photo.name for photo in last.images), []).append((run, last))
    ordered = sorted(groups.values(), key=lambda members: -len(members))
    return [
        _grid(
            id=f"together-{place}",
            title="All runs" if len(members) == len(runs) else _members(members),
            run=None,
            columns=[(run.name, run, evaluation) for run, evaluation in members],
            images=images,
            thumbnails=thumbnails,
        )
        for place, members in enumerate(ordered)
    ]


def _members(members: Sequence[tuple[Run, StoredEvaluation]]) -> str:
    return members[0][0].name if len(members) == 1 else f"{len(members)} runs on the same photographs"


def epoch_grids(runs: Sequence[Run], data: str | None, images: int, thumbnails: Thumbnails) -> list[Grid]:
    """For each run that was measured at more than one epoch: its epochs side by side."""
    return [
        _grid(
            id=f"epochs-{run.number}",
            title=run.name,
            run=run,
            columns=[(one.epoch_text.capitalize(), run, one) for one in run.measured(data)],
            images=images,
            thumbnails=thumbnails,
        )
        for run in runs
        if len(run.measured(data)) > 1
    ]


def extreme_grids(runs: Sequence[Run], data: str | None, thumbnails: Thumbnails) -> list[tuple[Grid, Grid]]:
    """For each run the photographs with the lowest and with the highest CIEDE2000 of its last evaluation."""
    found = []
    for run in runs:
        last = run.last(data)
        ranked = _ranked(last) if last else []
        count = min(EXTREMES, len(ranked) // 2)
        if last and count:
            best, worst = ranked[:count], ranked[: -count - 1 : -1]
            found.append(
                (
                    _extreme(f"best-{run.number}", "Best", run, last, best, thumbnails),
                    _extreme(f"worst-{run.number}", "Worst", run, last, worst, thumbnails),
                )
            )
    return found


def _ranked(evaluation: StoredEvaluation) -> list[ImageScores]:
    valued = [(value, photo) for photo in evaluation.images if (value := photo.value("ciede2000")) is not None]
    return [photo for _, photo in sorted(valued, key=lambda one: (one[0], one[1].number))]


def _extreme(
    id: str, title: str, run: Run, evaluation: StoredEvaluation, photos: Sequence[ImageScores], thumbnails: Thumbnails
) -> Grid:
    rows = [_row(photo, [(evaluation, photo)], thumbnails) for photo in photos]
    content = {"cards": True, "columns": [{"label": run.name, "run": run.number}], "rows": rows}
    return Grid(id=id, title=title, run=run, shown=len(rows), photographs=len(evaluation.images), content=content)


def _grid(
    id: str,
    title: str,
    run: Run | None,
    columns: Sequence[tuple[str, Run, StoredEvaluation]],
    images: int,
    thumbnails: Thumbnails,
) -> Grid:
    by_number = [{photo.number: photo for photo in evaluation.images} for _, _, evaluation in columns]
    kept = [photo for photo in columns[0][2].images if _has_image(photo, columns, by_number)][:images]
    rows = []
    for photo in kept:
        cells = [
            (evaluation, photos.get(photo.number))
            for (_, _, evaluation), photos in zip(columns, by_number, strict=True)
        ]
        rows.append(_row(photo, cells, thumbnails))
    labels = [{"label": label, "run": of.number} for label, of, _ in columns]
    content = {"columns": labels, "rows": rows}
    photographs = len(columns[0][2].images)
    return Grid(id=id, title=title, run=run, shown=len(rows), photographs=photographs, content=content)


def _has_image(
    photo: ImageScores,
    columns: Sequence[tuple[str, Run, StoredEvaluation]],
    by_number: Sequence[dict[int, ImageScores]],
) -> bool:
    """Whether every column has an image of it. Best and worst images, which one run alone kept, get no row."""
    found = (photos.get(photo.number) for photos in by_number)
    return all(
        other is not None and evaluation.image_file(other, "model") is not None
        for other, (_, _, evaluation) in zip(found, columns, strict=True)
    )


def _row(
    photo: ImageScores, cells: Sequence[tuple[StoredEvaluation, ImageScores | None]], thumbnails: Thumbnails
) -> dict[str, Any]:
    made = [_cell(evaluation, one, thumbnails) for evaluation, one in cells]
    first = next((one for one in made if one), None)
    return {
        "name": isolated(escaped(photo.name)),
        "number": photo.number,
        "gray": first["gray"] if first else None,
        "original": first["original"] if first else None,
        "cells": made,
    }


def _cell(evaluation: StoredEvaluation, photo: ImageScores | None, thumbnails: Thumbnails) -> dict[str, Any] | None:
    """Thumbnails of the gray copy, the model's image and the original, with the CIEDE2000; None if not kept."""
    model = thumbnails.add(evaluation.image_file(photo, "model")) if photo else None
    if photo is None or model is None:
        return None
    return {
        "gray": thumbnails.add(evaluation.image_file(photo, "gray")),
        "model": model,
        "original": thumbnails.add(evaluation.image_file(photo, "original")),
        "text": number(photo.value("ciede2000"), 1),
    }
