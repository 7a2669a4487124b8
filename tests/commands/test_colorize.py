"""Coloring by command: any photograph, its own size and luminance; bad input leaves nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage.color import rgb2lab
from sklearn.datasets import load_sample_image

from hpc_recolor.data.color_profiles import has_foreign_profile
from tests.conftest import TINY, Command, CommandIn, changed, contents, error_line, paint_photo
from tests.support.bad_photos import sixteen_bit_png


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory, command_in: CommandIn) -> Path:
    """The folder of a finished run, with another choice than the default wherever there is one."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "held_out").mkdir()
    paint_photo(20).save(folder / "held_out" / "one.png")
    choices = {"data.held_out": "held_out", "run.folder": "elsewhere", "run.name": "other", "loss.adversarial": "mse"}
    model = {"model.generator": "resnet", "model.color": "rgb", "model.norm": "instance"}
    flags = changed(TINY, **choices, **model)
    done = command_in(folder)("train", "--data.photos", photos, *flags)
    assert done.returncode == 0, done.stderr
    assert not (folder / "runs").exists()
    return folder / "elsewhere" / "other"


def gray_photo(number: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.asarray(paint_photo(number).convert("L"))


def paint_inputs(folder: Path) -> None:
    """Photographs of many sizes and kinds."""
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter turn
    paint_photo(1, 5, 3).save(folder / "tiny.png")
    paint_photo(2, 300, 20).save(folder / "panorama.jpg")
    paint_photo(3, 40, 90).save(folder / "portrait.webp", lossless=True)
    paint_photo(4).save(folder / "exif_rotated.jpg", exif=rotated)
    paint_photo(5).convert("P").save(folder / "palette.png")
    paint_photo(6).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(gray_photo(7)).save(folder / "gray.png")
    Image.fromarray(gray_photo(8).astype(np.uint16) * 257).save(folder / "gray_16_bit.png")


def lightness(photo: Image.Image) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """CIE L* of an image, rows by columns."""
    if photo.mode.startswith("I;16"):
        rgb = np.repeat(np.asarray(photo)[..., None] / 65535, 3, axis=-1)
    else:
        rgb = np.asarray(photo.convert("RGB")) / 255
    lab: np.ndarray[tuple[int, int, int], np.dtype[np.float64]] = rgb2lab(rgb)
    return lab[..., 0]


@pytest.fixture(scope="module")
def inputs_and_colored(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, command_in: CommandIn
) -> tuple[Path, Path]:
    """A folder of photographs, and the folder with their colored copies."""
    folder = tmp_path_factory.mktemp("inputs")
    paint_inputs(folder)
    out = tmp_path_factory.mktemp("colored") / "made" / "here"
    done = command_in(trained)("colorize", folder, "--run", trained, "--out", out, fresh=True)
    assert done.returncode == 0, done.stderr
    return folder, out


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [
        ("tiny.png", 5, 3),
        ("panorama.jpg", 300, 20),
        ("portrait.webp", 40, 90),
        ("exif_rotated.jpg", 40, 48),
        ("palette.png", 48, 40),
        ("rgba.png", 48, 40),
        ("gray.png", 48, 40),
        ("gray_16_bit.png", 48, 40),
    ],
)
def test_colored_copy_keeps_size_and_lightness(
    inputs_and_colored: tuple[Path, Path], name: str, width: int, height: int
) -> None:
    inputs, out = inputs_and_colored
    with Image.open(inputs / name) as photo, Image.open((out / name).with_suffix(".png")) as colored:
        assert colored.format == "PNG"
        assert colored.size == (width, height)
        assert np.abs(lightness(ImageOps.exif_transpose(photo)) - lightness(colored)).mean() < 1.0


def test_a_colored_copy_is_srgb_and_keeps_its_transparency(inputs_and_colored: tuple[Path, Path]) -> None:
    inputs, out = inputs_and_colored
    with Image.open(inputs / "rgba.png") as photo, Image.open(out / "rgba.png") as colored:
        assert colored.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(colored)[..., 3], np.asarray(photo)[..., 3])
        assert colored.info["icc_profile"]
        assert not has_foreign_profile(colored)


def test_every_photograph_of_a_folder_is_colored_and_nothing_else_written(
    inputs_and_colored: tuple[Path, Path],
) -> None:
    inputs, out = inputs_and_colored
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{path.stem}.png" for path in inputs.iterdir())


def test_without_a_run_the_colorizer_of_the_package_is_used(command: Command, tmp_path: Path) -> None:
    """It knows that grass is green, and what a sky looks like."""
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.jpg")
    done = command("colorize", "china.jpg", "--out", "out")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "china.png") as colored:
        lab = rgb2lab(np.asarray(colored))
    assert lab.shape[:2] == (427, 640)
    assert np.hypot(lab[..., 1], lab[..., 2]).mean() > 5


@pytest.mark.parametrize("kind", ["gray", "color"])
def test_eight_bits_are_announced_where_sixteen_came_in(
    command: Command, tmp_path: Path, trained: Path, kind: str
) -> None:
    if kind == "gray":
        Image.fromarray(gray_photo(8).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    else:
        (tmp_path / "deep.png").write_bytes(sixteen_bit_png(np.asarray(paint_photo(8))))
    paint_photo(1).save(tmp_path / "plain.png")
    done = command("colorize", "deep.png", "plain.png", "--run", trained, "--out", "out")
    line = "1 of the photographs have more than 8 bits a channel; colored copies have 8"
    assert done.stderr.splitlines()[-1] == line and done.returncode == 0


def test_unreadable_photograph_is_skipped_and_named(command: Command, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "folder").mkdir()
    paint_photo(1).save(tmp_path / "folder" / "first.png")
    paint_photo(2).save(tmp_path / "last.png")
    (tmp_path / "folder" / "truncated.png").write_bytes((tmp_path / "last.png").read_bytes()[:300])
    result = command("colorize", "folder", "last.png", "--run", trained, "--out", "out")
    assert "truncated.png" in error_line(result)
    assert sorted(contents(tmp_path / "out")) == ["first.png", "last.png"]


@pytest.mark.parametrize(
    ("photographs", "out", "expected"),
    [
        (["good.png", "nowhere.png"], "out", ["nowhere.png"]),
        (["good.png"], "link", ["good.png"]),
        (["good.png"], "good.png", ["good.png"]),
        ([], "out", ["PHOTO"]),
    ],
    ids=["missing", "onto itself", "out is a file", "none"],
)
def test_illegal_photographs_are_refused_and_nothing_is_written(
    command: Command, tmp_path: Path, trained: Path, photographs: list[str], out: str, expected: list[str]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "link").symlink_to(".")
    paint_photo(1).save(tmp_path / "good.png")
    paint_photo(2).save(tmp_path / "more" / "good.jpg")
    before = contents(tmp_path)
    line = error_line(command("colorize", *photographs, "--run", trained, "--out", out))
    assert any(part in line for part in expected), line
    assert contents(tmp_path) == before


def remove_run(run: Path) -> None:
    shutil.rmtree(run)


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def double_width(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "width: 4\n" in text
    (run / "config.yaml").write_text(text.replace("width: 4\n", "width: 8\n"))


def flip_bit_of_weights(run: Path) -> None:
    (file,) = run.glob("checkpoints/*/shard-00000-of-00001.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_bit_of_manifest(run: Path) -> None:
    (file,) = run.glob("checkpoints/*/manifest.json")
    assert b'"files"' in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b'"files"', b'"filer"'))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_run, ["mine"]),
        (remove_checkpoints, ["mine", "no checkpoint"]),
        (double_width, ["mine", "does not fit the config"]),
        (flip_bit_of_weights, ["shard-00000-of-00001.safetensors"]),
        (flip_bit_of_manifest, ["manifest.json"]),
    ],
)
def test_unusable_run_is_refused_and_nothing_is_written(
    command: Command, tmp_path: Path, trained: Path, damage: Callable[[Path], None], expected: list[str]
) -> None:
    paint_photo(1).save(tmp_path / "good.png")
    damage(Path(shutil.copytree(trained, tmp_path / "mine")))
    before = contents(tmp_path)
    line = error_line(command("colorize", "good.png", "--run", "mine", "--out", "out"))
    assert all(part in line for part in expected), line
    assert contents(tmp_path) == before
