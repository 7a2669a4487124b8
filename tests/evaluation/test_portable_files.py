"""Colorizers as files for other programs: the same colors, at any size, without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hpc_recolor import checkpoint, cli
from hpc_recolor.config import ColorName, Config, GeneratorName, ModelConfig, NormName
from hpc_recolor.data.package_photos import write_photographs
from hpc_recolor.evaluation.colorizer import Colorizer
from hpc_recolor.evaluation.portable_colorizer import PortableColorizer
from hpc_recolor.evaluation.portable_files import color_by_onnx, color_by_torch, write_portable
from hpc_recolor.models.build import build_generator
from hpc_recolor.runtime.errors import UserError
from recolor_kernels import color_metrics
from tests.conftest import ROOT, paint_photo
from tests.support import tolerances

pytestmark = pytest.mark.slow  # torch.export takes seconds

SIZES = [(1, 1), (5, 3), (97, 64), (64, 97), (400, 30)]


def colorizer(
    generator: GeneratorName, color: ColorName = "lab", norm: NormName = "batch", **model: object
) -> Colorizer:
    """An untrained one, whose colors are made strong enough to differ."""
    config = Config.model_validate(
        {
            "model": {"generator": generator, "color": color, "norm": norm, "width": 2, "backbone_weights": "none"}
            | model,
            "data": {"size": 32},
        }
    )
    torch.manual_seed(0)
    network = build_generator(config.model, config.data.size)
    *_, weight, _bias = network.parameters()
    weight.data *= 3
    return Colorizer(network, config, vividness=1.3)


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean CIEDE2000."""
    return float(color_metrics(torch.from_numpy(one)[None], torch.from_numpy(other)[None]).ciede2000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vividness", [0.0, 0.7, 2.0])
def test_the_graph_colors_as_the_colorizer_does(size: tuple[int, int], vividness: float) -> None:
    colorize = colorizer("backbone_unet", backbone_scale=1.5, mirrored=True, chroma_stride=4)
    colorize.vividness = vividness
    photo = np.array(paint_photo(1, *size))
    with torch.no_grad():
        found = PortableColorizer(colorize)(torch.from_numpy(photo)[None], torch.tensor(vividness))
    assert difference(found[0].numpy(), colorize(photo)) < tolerances.PORTABLE_MEAN


@pytest.mark.parametrize(
    ("generator", "color", "norm"),
    [("unet", "lab", "batch"), ("autoencoder", "rgb", "sync_batch"), ("resnet", "lab", "batch")],
)
def test_every_generator_becomes_an_onnx_file_for_photographs_of_any_size(
    tmp_path: Path, generator: GeneratorName, color: ColorName, norm: NormName
) -> None:
    colorize, file = colorizer(generator, color, norm), tmp_path / "colorizer.onnx"
    write_portable(colorize, {"card": "{}"}, file, "onnx")
    for size in SIZES:
        photo = np.array(paint_photo(2, *size))
        found = color_by_onnx(file, photo, colorize.vividness).numpy()
        assert difference(found, colorize(photo)) < tolerances.PORTABLE_MEAN, size
    assert [path.name for path in tmp_path.iterdir()] == ["colorizer.onnx"]


def test_bins_are_decoded_in_an_onnx_file(tmp_path: Path) -> None:
    colorize, file = colorizer("backbone_unet", bin_width=12, mirrored=True), tmp_path / "colorizer.onnx"
    write_portable(colorize, {"card": "{}"}, file, "onnx")
    for size in SIZES[2:4]:
        photo = np.array(paint_photo(2, *size))
        found = color_by_onnx(file, photo, colorize.vividness).numpy()
        assert difference(found, colorize(photo)) < tolerances.PORTABLE_MEAN, size


def test_a_program_of_torch_export_colors_photographs_of_any_size(tmp_path: Path) -> None:
    colorize, file = colorizer("unet"), tmp_path / "colorizer.pt2"
    write_portable(colorize, {"card": "{}"}, file, "torch")
    for size in SIZES:
        photo = np.array(paint_photo(2, *size))
        found = color_by_torch(file, photo, colorize.vividness).numpy()
        assert difference(found, colorize(photo)) < tolerances.PORTABLE_MEAN, size
    assert [path.name for path in tmp_path.iterdir()] == ["colorizer.pt2"]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colorizer that comes with this package as an ONNX file."""
    file = tmp_path_factory.mktemp("export") / "colorizer.onnx"
    assert cli.run(checkpoint.app, ["export", "--format", "onnx", "--out", str(file)]) == 0
    return file


def test_the_packaged_colorizer_colors_the_package_photographs_alike(packaged: Path, tmp_path: Path) -> None:
    colorize = Colorizer.load()
    found = []
    for file in write_photographs(tmp_path):
        with Image.open(file) as photo:
            pixels = np.array(photo.convert("RGB"))
        found.append(difference(color_by_onnx(packaged, pixels, colorize.vividness).numpy(), colorize(pixels)))
    assert sum(found) / len(found) < tolerances.PORTABLE_MEAN
    assert max(found) < tolerances.PORTABLE_WORST


def test_a_file_says_what_it_is_and_under_which_license(packaged: Path) -> None:
    session = onnxruntime.InferenceSession(packaged)
    notes = session.get_modelmeta().custom_metadata_map
    card = json.loads(notes["card"])
    assert (card["size"], card["model"]["generator"]) == (128, "backbone_unet")
    assert float(notes["vividness"]) == pytest.approx(Colorizer.load().vividness, abs=1e-4)
    assert "Apache License" in notes["license"] and "EfficientNet-Lite0" in notes["license"]
    rgb, vividness = session.get_inputs()
    assert (rgb.name, rgb.type, rgb.shape[3], len(set(rgb.shape))) == ("rgb", "tensor(uint8)", 3, 4)
    assert (vividness.name, vividness.shape) == ("vividness", [])


def test_several_photographs_of_one_size_are_colored_together(packaged: Path) -> None:
    session = onnxruntime.InferenceSession(packaged)
    photos = np.stack([np.array(paint_photo(number, 70, 50)) for number in range(3)])
    (together,) = session.run(None, {"rgb": photos, "vividness": np.array(1, np.float32)})
    for photo, found in zip(photos, together, strict=True):
        alone = color_by_onnx(packaged, photo, 1.0).numpy()
        assert np.abs(found.astype(int) - alone).max() <= tolerances.ROUNDED_LEVELS


def test_the_documented_example_needs_onnxruntime_pillow_and_numpy_alone(packaged: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import numpy.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    photo = paint_photo(3, 90, 60)
    photo.save(tmp_path / "photo.png")
    (tmp_path / "colorizer.onnx").symlink_to(packaged)
    check = "\nimport sys\nassert not {'torch', 'hpc_recolor'} & set(sys.modules)\n"
    program = example.replace("photo.jpg", "photo.png") + check
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=600)
    with Image.open(tmp_path / "colored.png") as colored:
        found = np.array(colored)
    assert difference(found, np.array(Colorizer.load()(photo))) < tolerances.PORTABLE_MEAN


def test_colors_that_differ_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_recolor.evaluation.portable_files.MOST_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match="its colors differ from ours by"):
        write_portable(colorizer("unet"), {}, tmp_path / "colorizer.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_torch_cannot_export_is_refused_in_one_line(tmp_path: Path) -> None:
    class Unfit(torch.nn.Module):
        multiple = 32

        def forward(self, condition: torch.Tensor) -> torch.Tensor:
            times = 2 if float(condition.sum()) > 0 else 1  # another graph for other data
            return times * condition.expand(-1, 2, -1, -1)

    config = Config(model=ModelConfig(width=2))
    with pytest.raises(UserError, match=r"^format=torch: this generator cannot be exported") as caught:
        write_portable(Colorizer(Unfit(), config), {}, tmp_path / "colorizer.pt2", "torch")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
