"""Images of samples, and plots of losses."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hpc_recolor.run_folder.metrics_log import read_metrics

CAPTION_HEIGHT = 16
GAP = 4


def sample_grid(columns: Mapping[str, NDArray[np.uint8]], across: int = 2) -> Image.Image:
    """Images side by side under captions, `across` samples in a row. columns: caption -> uint8 (N,H,W,3)."""
    count, height, width, _ = next(iter(columns.values())).shape
    block = len(columns) * (width + GAP) + GAP
    rows = -(-count // across)
    grid = Image.new("RGB", (across * block, CAPTION_HEIGHT + rows * (height + GAP)), "white")
    draw = ImageDraw.Draw(grid)
    for number, (column, (caption, images)) in product(range(across), enumerate(columns.items())):
        left = number * block + column * (width + GAP)
        draw.text((left, 2), caption, fill="black")
        for row, image in enumerate(images[number::across]):
            grid.paste(Image.fromarray(image), (left, CAPTION_HEIGHT + row * (height + GAP)))
    return grid


def photograph_table(columns: dict[str, Sequence[Image.Image]], width: int = 320) -> Image.Image:
    """Photographs of any sizes in rows, one a column under captions, each `width` pixels wide."""
    rows = [
        [photo.resize((width, round(photo.height * width / photo.width)), Image.Resampling.LANCZOS) for photo in row]
        for row in zip(*columns.values(), strict=True)
    ]
    height = CAPTION_HEIGHT + sum(row[0].height + GAP for row in rows)
    table = Image.new("RGB", (len(columns) * (width + GAP) - GAP, height), "white")
    draw = ImageDraw.Draw(table)
    for column, caption in enumerate(columns):
        draw.text((column * (width + GAP), 2), caption, fill="black")
    top = CAPTION_HEIGHT
    for row in rows:
        for column, photo in enumerate(row):
            table.paste(photo, (column * (width + GAP), top))
        top += row[0].height + GAP
    return table


def plot_losses(metrics: Path, out: Path) -> None:
    """Plot both networks' losses, in training and on held-out photographs, over the epochs of a metrics.jsonl.

    out: the figure, in the format of its suffix.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    every = read_metrics(metrics)
    training = [row for row in every if row["kind"] == "train"]
    held_out = [row for row in every if row["kind"] == "held_out"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    curves = (
        (left, training, "discriminator", "discriminator", "C0-"),
        (left, held_out, "discriminator", "discriminator (held out)", "C0--"),
        (left, training, "adversarial", "generator, adversarial", "C1-"),
        (left, held_out, "adversarial", "generator, adversarial (held out)", "C1--"),
        (middle, training, "l1", "generator, L1", "C0-"),
        (middle, held_out, "l1", "generator, L1 (held out)", "C0--"),
        (right, held_out, "ab_error", "model", "C0-"),
        (right, held_out, "gray_ab_error", "gray copy", "C1-"),
    )
    for axes, rows, key, label, style in curves:
        points = [row for row in rows if key in row and "epoch" in row]  # earlier versions logged less
        marker = "o" if len(points) == 1 else ""  # a line through one point shows nothing
        axes.plot([row["epoch"] for row in points], [row[key] for row in points], style, marker=marker, label=label)
    for axes, title in (
        (left, "Discriminator against generator"),
        (middle, "Generator's L1"),
        (right, "Held-out ab error [Lab units]"),
    ):
        axes.axhline(0, linewidth=0)  # with zero in its range, the axis leaves room above a single point
        axes.set(title=title, xlabel="epoch", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(framealpha=0.7, edgecolor="none", fontsize="small")
    figure.savefig(out, dpi=120)
