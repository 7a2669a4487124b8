"""Run folders by hand, as training and evaluation leave them, and the report opened in a real browser."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.reporting.page import ReportOptions, write_report
from tests.conftest import paint_photo

HOSTILE = "<script>alert('x')</script>&\u2028\"].jpg"


@dataclass
class MadeRun:
    """A run folder to write.

    over: its config; error: CIEDE2000 of its images on average, beside the gray copy's 8; noise: how much the images
    differ in that; kept: how many images have files; different: how many of these are not links to others; front: by
    vividness, CIEDE2000 and colorfulness.
    """

    folder: Path
    over: dict[str, Any] = field(default_factory=dict)
    error: float = 6.0
    noise: float = 0.5
    epochs: Sequence[int] = (2,)
    data: str = "test"
    images: int = 30
    kept: int = 30
    different: int = 500
    size: int = 32
    fingerprint: str = "f" * 64
    readings: int = 40
    names: Callable[[int], str] = "photo {}.jpg".format
    seed: int = 0
    front: dict[float, tuple[float, float]] = field(default_factory=dict)

    def write(self) -> Path:
        config = load_config(None, {"data": {"size": self.size}, **self.over})
        (self.folder / "checkpoints" / f"images-{1000 * self.epochs[-1]:012d}").mkdir(parents=True)
        (self.folder / "config.yaml").write_text(to_yaml(config))
        self.color = config.model.color
        write_metrics(self.folder, self.readings)
        for epoch in self.epochs:
            self.evaluate(epoch)
        return self.folder

    def evaluate(self, epoch: int) -> None:
        """Write an evaluation, its images a mix of the original and the gray copy."""
        data = self.folder / "evaluations" / self.data
        stem = data / f"epoch-{epoch:04d}"
        for folder in (stem, data / "original", data / "gray"):
            folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.different, self.kept):
            for folder in (data / "original", data / "gray", stem):
                (folder / f"{number:06d}.png").symlink_to(f"{number % self.different:06d}.png")
        for number in range(min(self.different, self.kept)):
            original = np.asarray(paint_photo(number, self.size, self.size))
            gray = np.repeat(original.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
            mixed = (0.5 * original + 0.5 * gray).astype(np.uint8) // (1 + self.seed)
            for folder, pixels in ((data / "original", original), (data / "gray", gray), (stem, mixed)):
                Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)
        images = [self.photo(number) for number in range(self.images)]
        stem.with_suffix(".json").write_text(json.dumps(self.content(epoch, images)))

    def photo(self, number: int) -> dict[str, Any]:
        draw = np.random.default_rng((self.seed, number))
        error = self.error + self.noise * draw.standard_normal()
        values = {"ciede2000": error, "ab_error": error + 1, "colorfulness": 20.0, "original_colorfulness": 40.0}
        values |= {"gray_ciede2000": 8.0, "mean_color_ciede2000": 9.0, "gray_ab_error": 9.0, "mean_color_ab_error": 9.5}
        values |= {"own_l_ciede2000": error - 0.5} if self.color == "rgb" else {}
        return {"number": number, "name": self.names(number), "picture": number < self.kept, **values}

    def content(self, epoch: int, images: list[dict[str, Any]]) -> dict[str, Any]:
        def mean(prefix: str) -> dict[str, float | None]:
            keys = [key for key in ("ciede2000", "ab_error") if images and prefix + key in images[0]]
            means: dict[str, float | None] = {
                key: float(np.mean([one[prefix + key] for one in images])) + 0.01 * (10 - epoch) for key in keys
            }
            return means | {"psnr": None, "ssim": 0.9, "colorfulness": 20.0, "colorfulness_difference": -20.0}

        rows = {"model": mean(""), "gray": mean("gray_"), "mean_color": mean("mean_color_")}
        rows |= {"model_own_l": mean("own_l_")} if self.color == "rgb" else {}
        protocol = {
            "data": self.data,
            "images": self.images,
            "fingerprint": self.fingerprint,
            "size": self.size,
            "fit": "crop",
            "color": self.color,
            "checkpoint": f"images-{1000 * epoch:012d}",
            "checkpoint_sha256": "c" * 64,
            "images_seen": 1000 * epoch,
            "epoch": float(epoch),
            "weights": "ema",
            "round_trip": "to Lab and back",
            "formulas": {"ciede2000": "Sharma 2005"},
            "versions": {"torch": "2.11"},
            "lpips_weights": None,
            "fid_weights": None,
        }
        losses = {"l1": 0.1, "adversarial": 0.9, "discriminator": None}
        front = [{"vividness": key, "ciede2000": y, "colorfulness": x} for key, (y, x) in self.front.items()]
        whole = {"format": 1, "run": "x", "protocol": protocol, "losses": losses, "rows": rows, "images": images}
        return whole | {"front": front}


def write_metrics(folder: Path, readings: int) -> None:
    """A metrics.jsonl with `readings` rows of training, ending in a line that a kill cut."""
    rows: list[dict[str, Any]] = [
        {"kind": "start", "images_seen": 0, "epoch": 0.0, "world_size": 2, "hardware": "2 x CPU", "commit": "abc"}
    ]
    for reading in range(1, readings + 1):
        place = {"images_seen": 50 * reading, "epoch": reading / 20}
        losses = {"discriminator": 0.6, "adversarial": 0.8, "l1": 1 / reading, "lr": 2e-4, "images_per_s": 25.0}
        rows.append({"kind": "train", **place, **losses})
        if reading % 10 == 0:
            scores = {"ciede2000": 8.5, "gray_ciede2000": 8.0, "ab_error": 9.0, "gray_ab_error": float("nan")}
            rows.append({"kind": "held_out", **place, **scores, "l1": 0.2})
    rows.append({"kind": "of the future", "images_seen": 1})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "train", "imag')


LAB = {"model": {"color": "lab"}}
RGB = {"model": {"color": "rgb"}}
LAB_L1 = {"model": {"color": "lab"}, "loss": {"adversarial": "none"}}


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An RGB run measured twice, a Lab run, and one that learned by L1 alone. One photograph has a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    names = lambda number: HOSTILE if number == 1 else f"photo {number}.jpg"  # noqa: E731
    return [
        MadeRun(folder / "cars-rgb", RGB, error=9, epochs=(1, 2), names=names).write(),
        MadeRun(folder / "cars-lab", LAB, error=6, seed=1, names=names).write(),
        MadeRun(folder / "cars-l1", LAB_L1, error=7.5, seed=2, names=names).write(),
    ]


@pytest.fixture(scope="session")
def report(three_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the three runs."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(three_runs, out, ReportOptions(grid_size=12))
    return out


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """`opened(file, width=390)`: the page in its own window. What it complains of or asks for fails the test."""
    wrong: list[str] = []
    contexts = []

    def open_page(file: Path, width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda asked: wrong.append(asked.url[:200]) if _is_foreign(asked.url, file) else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def _is_foreign(url: str, file: Path) -> bool:
    return not url.startswith("data:image/") and url != "data:," and url.split("#")[0] != file.as_uri()
