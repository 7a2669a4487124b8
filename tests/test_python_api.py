"""What other programs and notebooks import from `hpc_recolor`: the names, what they take, and what they give."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
from PIL import Image

import hpc_recolor
from hpc_recolor import Colorizer, load_config
from hpc_recolor.models.build import build_generator
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT, TINY, paint_photo
from tests.test_imports import COMMAND_MODULES

NAMES = {"Colorizer", "__version__", "evaluate_run", "load_config", "train_run"}
FIELDS = {key.removeprefix("--"): value for key, value in zip(TINY[::2], TINY[1::2], strict=True)}


@pytest.fixture(scope="module")
def colorize() -> Colorizer:
    """An untrained one, which is small."""
    config = load_config(None, {"data.size": 32, "model.width": 2})
    return Colorizer(build_generator(config.model, config.data.size), config)


def test_the_public_names_are_these() -> None:
    assert set(hpc_recolor.__all__) == NAMES
    assert set(dir(hpc_recolor)) >= NAMES
    with pytest.raises(AttributeError, match="has no attribute 'colorizer'"):
        hpc_recolor.colorizer  # type: ignore[attr-defined]  # noqa: B018


def test_the_names_stay_what_they_are_once_every_command_is_imported() -> None:
    for module in COMMAND_MODULES:
        import_module(module)
    for name in NAMES - {"__version__"}:
        assert isinstance(getattr(hpc_recolor, name), FunctionType | type), name


def test_importing_the_package_imports_no_library() -> None:
    check = "import sys, hpc_recolor; sys.exit(bool({'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_type_checker_knows_the_names_and_what_they_return(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from hpc_recolor import Colorizer, evaluate_run, load_config, train_run\n"
        "import hpc_recolor, numpy as np\n"
        "reveal_type(Colorizer.load()('photo.jpg'))\n"
        "reveal_type(Colorizer.load()(np.zeros((8, 8), np.uint8)))\n"
        "reveal_type(load_config('quickstart').train.epochs)\n"
        "reveal_type(evaluate_run(train_run('quickstart')))\n"
        "hpc_recolor.trian_run\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml"]
    shown = subprocess.run([*command, tmp_path / "use.py"], cwd=ROOT, capture_output=True, text=True).stdout
    for line, found in ((3, "PIL.Image.Image"), (4, "numpy.ndarray"), (5, "int"), (6, "Evaluation]")):
        assert any(f"use.py:{line}:" in row and found in row for row in shown.splitlines()), shown
    assert 'use.py:7: error: Module has no attribute "trian_run"' in shown


def test_a_photograph_is_colored_in_the_form_that_it_is_given_in(colorize: Colorizer, tmp_path: Path) -> None:
    photo = paint_photo(3)
    photo.save(tmp_path / "photo.png")
    expected = colorize(photo)
    assert isinstance(expected, Image.Image) and expected.size == photo.size
    pixels = np.asarray(photo)
    for path in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert colorize(path).tobytes() == expected.tobytes()
    for array in (pixels, np.asfortranarray(pixels)):
        np.testing.assert_array_equal(colorize(array), np.asarray(expected))
    assert colorize(pixels).flags.writeable
    np.testing.assert_array_equal(colorize(np.stack([pixels, pixels]))[1], np.asarray(expected))
    assert [one.tobytes() for one in colorize([photo, photo])] == [expected.tobytes()] * 2
    np.testing.assert_array_equal(colorize([pixels])[0], np.asarray(expected))
    gray = np.asarray(photo.convert("L"))
    np.testing.assert_array_equal(colorize(gray), np.asarray(colorize(Image.fromarray(gray))))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((1, 2, 8, 8, 3), np.uint8),
    ],
    ids=["float", "RGBA", "one dimension", "empty", "five dimensions"],
)
def test_other_arrays_are_refused_with_what_would_do(
    colorize: Colorizer, pixels: "np.typing.NDArray[np.uint8]"
) -> None:
    with pytest.raises(UserError, match=r"photo: array of .* give uint8 of \(height, width\)"):
        colorize(pixels)


def test_a_file_that_is_no_photograph_is_named(colorize: Colorizer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photograph")
    for name, reason in (
        ("notes.txt", "cannot be read"),
        ("gone.png", "No such file or directory"),
        ("", "Is a directory"),
    ):
        with pytest.raises(UserError) as error:
            colorize(str(tmp_path / name))
        assert str(tmp_path / name) in error.value.subject and reason in error.value.problem


def test_values_of_a_config_are_replaced_by_key_whatever_it_was_read_from(tmp_path: Path) -> None:
    config = load_config("quickstart", {"data.photos": "photos"})
    changed = load_config(config, {"train.epochs": 3})
    assert changed == load_config("quickstart", {"data.photos": "photos", "train": {"epochs": 3}})
    assert "size" in changed.data.model_fields_set and "fit" in changed.data.model_fields_set
    assert "loader" not in changed.data.model_fields_set
    with pytest.raises(UserError, match=r"config of quickstart: train\.epochs=0"):
        load_config(config, {"train.epochs": 0})


IN_ONE_PROCESS = """
import sys
from hpc_recolor import Colorizer, evaluate_run, load_config, train_run
photos, fields = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
run = train_run(load_config("quickstart", fields | {"data.photos": photos, "run.name": "mine"}))
(evaluation,) = evaluate_run(run)
print("measured", evaluation.run, sorted(evaluation.rows))
print("colored", Colorizer.load(run)(photos + "/photo01.jpg").size)
second = train_run("quickstart", fields | {"data.photos": photos, "run.name": "second", "model.generator": "resnet"})
print("colored again", Colorizer.load(second)(photos + "/photo01.jpg").size)
"""


def run_script(text: str, folder: Path, photos: Path) -> str:
    fields = [f"{key}={value}" for key, value in FIELDS.items()]
    command = [sys.executable, "-c", text, str(photos), *fields]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_runs_are_trained_measured_and_used_in_one_program(photos: Path, tmp_path: Path) -> None:
    printed = run_script(IN_ONE_PROCESS, tmp_path, photos)
    assert "training runs/mine on 1 x cpu" in printed
    assert "\nloader: DALI, which is installed\n" in printed
    assert "measured mine ['gray', 'mean_color', 'model']" in printed
    assert "colored (48, 40)" in printed
    assert "training runs/second on 1 x cpu" in printed and "colored again (48, 40)" in printed
    assert (tmp_path / "runs" / "mine" / "evaluations").is_dir()


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs cells in a new kernel in an empty folder. Returns the kinds of what they showed, and their texts."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")

    def run(*cells: str) -> list[str]:
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbclient.NotebookClient(page, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in page.cells for output in cell.outputs]
        return [kind for output in outputs for kind in (*output.get("data", {}), output.get("text", ""))]

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_three_lines_in_a_notebook_color_a_photograph_and_show_it(
    notebook: Callable[..., list[str]], tmp_path: Path
) -> None:
    paint_photo(3).save(tmp_path / "photo.jpg")
    shown = notebook('from hpc_recolor import Colorizer\ncolorize = Colorizer.load()\ncolorize("photo.jpg")')
    assert "image/png" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_progress_is_a_bar_in_a_notebook(notebook: Callable[..., list[str]]) -> None:
    pytest.importorskip("ipywidgets")
    shown = notebook(
        "from hpc_recolor.runtime import progress\n"
        "progress.SECONDS_BETWEEN_LINES = 0.0\n"
        "with progress.show_progress('counting') as update:\n"
        "    for number in range(5):\n"
        "        update(number + 1, 5)\n"
    )
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert not any("counting: " in text for text in shown)
