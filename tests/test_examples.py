"""The programs in docs/examples/, on few and small photographs."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY, paint_photo
from tests.support.commands import run_forked
from tests.support.fork_server import ForkServer

EXAMPLES = ROOT / "docs" / "examples"
FIELDS = [f"{key.removeprefix('--')}={value}" for key, value in zip(TINY[::2], TINY[1::2], strict=True)]

Example = Callable[..., str]


@pytest.fixture
def example(fork_server: ForkServer, tmp_path: Path) -> Example:
    """`example("own_metric", DIR)` runs the program in an empty folder, and returns what it printed."""

    def run(name: str, *arguments: object) -> str:
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
        done = run_forked(fork_server, tmp_path, name, arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_photo_is_colored_twice(example: Example, tmp_path: Path) -> None:
    paint_photo(1).save(tmp_path / "photo.jpg")
    assert example("color_a_photo", "photo.jpg") == "colored.png: gray, faithful, vivid\n"
    with Image.open(tmp_path / "colored.png") as table:
        assert table.size == (3 * 48, 40)


def test_two_runs_are_trained_and_compared(example: Example, photos: Path) -> None:
    printed = example("train_on_a_folder", photos, *FIELDS)
    assert re.findall(r"^(\w+) +CIEDE2000 \d+\.\d\d  colorfulness \d+\.\d$", printed, re.MULTILINE) == [
        *("model", "gray", "mean_color")
    ]
    example("train_on_a_folder", photos, *FIELDS, "run.name=other", "model.width=2")
    compared = example("compare_two_runs", "runs/mine", "runs/other", photos)
    assert "runs/other: " in compared and "(CIEDE2000, 15 photographs)" in compared
    assert re.search(r"^difference -?\d+\.\d\d ± \d+\.\d\d \(95 %\)$", compared, re.MULTILINE)


def test_a_metric_of_ones_own_is_measured(example: Example, tmp_path: Path) -> None:
    for number in range(2):
        paint_photo(number).save(tmp_path / f"{number}.png")
    lines = example("own_metric", ".").splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.png", "1.png"]
    assert all(re.fullmatch(r".*: chroma \d+\.\d, of the original \d+\.\d: \d+%", line) for line in lines)


def test_every_example_is_run_and_shown() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    source = Path(__file__).read_text()
    for file in EXAMPLES.glob("*.py"):
        assert f"[{file.name}](examples/{file.name})" in page
        assert f'example("{file.stem}"' in source
