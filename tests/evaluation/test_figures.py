"""Images of samples, and plots of losses."""

import json
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from hpc_recolor.evaluation.figures import plot_losses, sample_grid
from hpc_recolor.run_folder.metrics_log import read_metrics


def test_sample_grid_shows_every_image_untouched() -> None:
    random = np.random.default_rng(0)
    columns = {name: random.integers(0, 256, (3, 10, 12, 3), np.uint8) for name in ("gray", "colorized", "original")}
    grid = np.asarray(sample_grid(columns, across=2))
    for column, images in enumerate(columns.values()):
        for number, image in enumerate(images):
            top, left = 16 + number // 2 * 14, number % 2 * 52 + column * 16
            np.testing.assert_array_equal(grid[top : top + 10, left : left + 12], image)


def test_losses_are_drawn_even_before_the_first_measurement(tmp_path: Path) -> None:
    losses = {"discriminator": 0.7, "adversarial": 0.7, "l1": 0.1}
    row = {"kind": "train", "images_seen": 4, "epoch": 0.5} | losses
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as figure:
        assert figure.width > 1000
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    blue = (np.abs(pixels - (0x1F, 0x77, 0xB4)) < 10).all(axis=2)
    assert sliding_window_view(blue, (5, 5)).all(axis=(2, 3)).any(), "one point is a dot, wider than any line"


def test_two_points_of_nearly_one_value_are_whole(tmp_path: Path) -> None:
    """As after the first epoch, when the model is still as good as the gray copy."""
    row = {"kind": "held_out", "images_seen": 208, "epoch": 1.04, "ab_error": 9.7347, "gray_ab_error": 9.7283}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    orange = (np.abs(pixels - (0xFF, 0x7F, 0x0E)) < 10).all(axis=2)
    dots = np.argwhere(sliding_window_view(orange, (7, 7)).all(axis=(2, 3)))
    assert np.ptp(dots, axis=0).max() > 20, "one in the legend, and one elsewhere"


def test_a_row_cut_by_a_kill_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train"}\n{"kind": "tr')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"kind": "train"}]
