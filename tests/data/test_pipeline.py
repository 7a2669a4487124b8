"""DALI's batches against Pillow and NumPy."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hpc_recolor.config import DataConfig, FitName
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.pipeline import load_photos, training_batches
from hpc_recolor.data.sources import find_photos
from hpc_recolor.distributed import World
from tests import tolerances
from tests.conftest import paint_photo

SIZE = 32


def rank(number: int, of: int) -> World:
    return World(rank=number, size=of, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def square_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Lossless photographs already at SIZE, so that decoding them is exact."""
    folder = tmp_path_factory.mktemp("square")
    for number in range(10):
        paint_photo(number, SIZE, SIZE).save(folder / f"{number}.png")
    return find_photos(folder, "data.photos")


def test_samples_are_flipped_as_the_order_says(square_photos: list[Path]) -> None:
    order = SampleOrder(len(square_photos), 3)
    numbers, flips = order.draw(0, 20)
    batch = next(training_batches(square_photos, order, 0, 20, DataConfig(size=SIZE), rank(0, 1)))
    assert batch.numbers.tolist() == numbers.tolist()
    assert len({tuple(flip) for flip in flips.tolist()}) == 4
    for picture, number, (horizontal, vertical) in zip(batch.rgb_u8_NHWC, numbers, flips, strict=True):
        expected = np.asarray(Image.open(square_photos[number]))
        expected = expected[:, ::-1] if horizontal else expected
        expected = expected[::-1] if vertical else expected
        np.testing.assert_array_equal(picture.numpy(), expected)


def test_flips_that_are_off_do_not_happen(square_photos: list[Path]) -> None:
    data = DataConfig(size=SIZE, flip_horizontal=False, flip_vertical=False)
    batch = next(training_batches(square_photos, SampleOrder(10, 3), 0, 10, data, rank(0, 1)))
    pictures = load_photos([square_photos[number] for number in batch.numbers], data, rank(0, 1))
    assert torch.equal(batch.rgb_u8_NHWC, pictures)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_slice_the_global_batch(square_photos: list[Path], ranks: int) -> None:
    data, order = DataConfig(size=SIZE), SampleOrder(10, 3)

    def batches(world: World) -> list[torch.Tensor]:
        return [batch.rgb_u8_NHWC for batch in islice(training_batches(square_photos, order, 0, 12, data, world), 3)]

    together = zip(*(batches(rank(number, ranks)) for number in range(ranks)), strict=True)
    for whole, slices in zip(batches(rank(0, 1)), together, strict=True):
        assert torch.equal(whole, torch.cat(slices))


def test_the_stream_goes_on_from_any_place(square_photos: list[Path]) -> None:
    data, order = DataConfig(size=SIZE), SampleOrder(10, 3)
    whole = list(islice(training_batches(square_photos, order, 0, 4, data, rank(0, 1)), 6))
    resumed = list(islice(training_batches(square_photos, order, 12, 4, data, rank(0, 1)), 3))
    for expected, found in zip(whole[3:], resumed, strict=True):
        assert torch.equal(expected.rgb_u8_NHWC, found.rgb_u8_NHWC)
        assert torch.equal(expected.numbers, found.numbers)


@pytest.mark.parametrize("kind", ["gray", "gray_alpha", "palette", "rgba", "bilevel", "cmyk", "progressive", "rotated"])
def test_odd_kinds_of_photographs_are_read_as_pillow_reads_them(tmp_path: Path, kind: str) -> None:
    photo = paint_photo(1, SIZE, SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    match kind:
        case "gray":
            photo.convert("L").save(path := tmp_path / "photo.jpg")
        case "gray_alpha":
            photo.convert("LA").save(path := tmp_path / "photo.png")
        case "palette":
            photo.convert("P").save(path := tmp_path / "photo.png")
        case "rgba":
            photo.convert("RGBA").save(path := tmp_path / "photo.png")
        case "bilevel":
            photo.convert("1").save(path := tmp_path / "photo.png")
        case "cmyk":
            photo.convert("CMYK").save(path := tmp_path / "photo.jpg", quality=95)
        case "progressive":
            photo.save(path := tmp_path / "photo.jpg", progressive=True)
        case "rotated":
            photo.save(path := tmp_path / "photo.jpg", exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), np.int16)
    found = load_photos([path], DataConfig(size=SIZE), rank(0, 1))[0].numpy()
    assert np.abs(found - expected).max() <= tolerances.DECODE_LEVELS


@pytest.mark.parametrize(("fit", "corners_black"), [("stretch", False), ("crop", False), ("pad", True)])
def test_every_fit_makes_a_square(tmp_path: Path, fit: FitName, corners_black: bool) -> None:
    Image.new("RGB", (60, 20), "white").save(tmp_path / "wide.png")
    picture = load_photos([tmp_path / "wide.png"], DataConfig(size=SIZE, fit=fit), rank(0, 1))[0]
    assert picture.shape == (SIZE, SIZE, 3)
    assert bool((picture[0, 0] == 0).all()) == corners_black
    assert bool((picture[SIZE // 2, SIZE // 2] == 255).all())


def test_crop_keeps_the_center_undistorted(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste(paint_photo(0, SIZE, SIZE), (32, 0))
    wide.save(tmp_path / "wide.png")
    picture = load_photos([tmp_path / "wide.png"], DataConfig(size=SIZE, fit="crop"), rank(0, 1))[0]
    np.testing.assert_array_equal(picture.numpy(), np.asarray(paint_photo(0, SIZE, SIZE)))


def test_no_photographs_make_an_empty_batch() -> None:
    assert load_photos([], DataConfig(size=SIZE), rank(0, 1)).shape == (0, SIZE, SIZE, 3)
