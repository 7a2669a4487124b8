"""One photograph colored: size, orientation and luminance stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from skimage.data import astronaut

from hpc_recolor.config import ColorName, Config, ModelConfig
from hpc_recolor.data.photo import to_rgb
from hpc_recolor.evaluation.colorizer import Colorizer, result_paths
from hpc_recolor.models.build import build_generator
from recolor_kernels import AB_SCALE
from tests.conftest import paint_photo
from tests.support import tolerances


def colorizer(color: ColorName = "lab") -> Colorizer:
    config = Config(model=ModelConfig(width=4, color=color))
    torch.manual_seed(0)
    return Colorizer(build_generator(config.model, config.data.size), config)


def lightness(photo: Image.Image) -> "np.typing.NDArray[np.float64]":
    values: np.typing.NDArray[np.float64] = rgb2lab(np.asarray(photo))[..., 0]
    return values


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (300, 20), (20, 300), (513, 257), (3000, 4)])
def test_any_size_is_kept(size: tuple[int, int]) -> None:
    assert colorizer()(paint_photo(0, *size)).size == size


@pytest.mark.parametrize("color", ["rgb", "lab"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_luminance_is_the_photographs_own_at_full_resolution(color: ColorName, mode: str) -> None:
    photo = paint_photo(3, 200, 150).convert(mode)
    colored = colorizer(color)(photo)
    assert np.abs(lightness(colored) - lightness(photo.convert("RGB"))).mean() <= tolerances.LUMINANCE


def test_vividness_makes_it_more_colorful_and_keeps_its_luminance() -> None:
    photo = paint_photo(3, 200, 150).convert("L")
    colorize = colorizer()
    *_, weight, _bias = colorize.generator.parameters()
    weight.data *= 30  # untrained, it predicts hardly any color
    spread = []
    for vividness in (0.0, 1.0, 2.0):
        colorize.vividness = vividness
        colored = colorize(photo)
        spread.append(float(np.abs(rgb2lab(np.asarray(colored))[..., 1:]).mean()))
        assert np.abs(lightness(colored) - lightness(photo.convert("RGB"))).mean() <= tolerances.LUMINANCE
    assert 10 * spread[0] < spread[1] and 1.5 * spread[1] < spread[2] <= 3.1 * spread[1]


def test_gray_may_come_as_one_channel_or_three() -> None:
    photo = paint_photo(3, 200, 150)
    gray = photo.convert("L")
    one, other = (np.asarray(colorizer("rgb")(image)) for image in (gray, gray.convert("RGB")))
    np.testing.assert_array_equal(one, other)


def test_a_rotated_photograph_comes_out_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    paint_photo(0, 60, 40).save(tmp_path / "rotated.jpg", exif=exif)
    with Image.open(tmp_path / "rotated.jpg") as photo:
        assert colorizer()(photo).size == (40, 60)


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    levels = np.asarray(to_rgb(Image.fromarray(ramp)))[..., 0].astype(int)
    assert np.abs(levels - ramp / 257).max() <= 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["2019/a.jpg", "2020/b.jpg"], ["a.png", "b.png"]),
        (["2019/a.jpg", "2020/a.jpg", "c.jpg"], ["2019/a.png", "2020/a.png", "c.png"]),
        (["2019/a.jpg", "2019/a.png", "c.jpg"], ["2019/a.jpg.png", "2019/a.png.png", "c.png"]),
        (["2019"], ["a.jpg.png", "a.png.png"]),
        (["2020"], ["a.png", "b.png", "deep/a.png"]),
        (["2020", "2020/b.jpg"], ["a.png", "b.png", "deep/a.png"]),
    ],
)
def test_results_lie_as_their_photographs_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2019/a.jpg", "2019/a.png", "2020/a.jpg", "2020/b.jpg", "2020/deep/a.jpg", "c.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    found = result_paths([Path(name) for name in given], Path("out"))
    assert sorted(path.relative_to("out").as_posix() for path in found.values()) == expected


@pytest.fixture(scope="module")
def packaged() -> Colorizer:
    """The colorizer that comes with this package."""
    return Colorizer.load()


def chroma_of(photo: Image.Image) -> "np.typing.NDArray[np.float64]":
    """a* and b*, rows by columns by 2."""
    values: np.typing.NDArray[np.float64] = rgb2lab(np.asarray(photo))[..., 1:]
    return values


def test_flat_gray_gets_no_pattern(packaged: Colorizer) -> None:
    """Nothing of a period of up to 8 pixels in the color that the network predicts, away from the borders."""
    with torch.no_grad():
        output = packaged.generator(torch.zeros(1, 1, 512, 512))[0, :, 192:320, 192:320]
    window = torch.hann_window(128)  # without one, a slow trend would show at every period
    spectrum = torch.fft.fft2((output - output.mean((1, 2), keepdim=True)) * window * window[:, None]).abs() / 128**2
    patterns = [spectrum.select(axis, 128 // period).max() for axis in (1, 2) for period in (2, 4, 8)]
    assert AB_SCALE * float(max(patterns)) < tolerances.PATTERN


@pytest.mark.parametrize("size", [(509, 317), (131, 257), (640, 427)])
def test_no_seam_at_odd_sizes(packaged: Colorizer, size: tuple[int, int]) -> None:
    """Colors next to a border differ no more from their neighbors than elsewhere."""
    colored = chroma_of(packaged(Image.fromarray(astronaut()).resize(size)))
    for axis in (0, 1):
        steps = np.abs(np.diff(colored, axis=axis)).mean((1 - axis, 2))
        assert steps[-4:].max() < 3 * steps.mean() + 0.5
