"""Batches against Pillow and NumPy."""

import io
import re
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hpc_recolor.config import DataConfig, FitName
from hpc_recolor.data import pipeline
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.batches import load_images, picked, stacked, training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.photo import SquareFit, to_square
from hpc_recolor.data.pipeline import handed_over
from hpc_recolor.data.samples import PhotoFiles, Subset
from hpc_recolor.data.shards import ShardSamples, read_set
from hpc_recolor.data.sources import find_photos
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from recolor_kernels import gather
from tests.conftest import paint_photo
from tests.support import tolerances
from tests.support.prepared_sets import SIZE, Prepare


def rank(number: int, of: int) -> World:
    return World(rank=number, size=of, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def square_photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoFiles:
    """Lossless photographs already at SIZE, so that decoding them is exact."""
    folder = tmp_path_factory.mktemp("square")
    for number in range(10):
        paint_photo(number, SIZE, SIZE).save(folder / f"{number}.png")
    return PhotoFiles(find_photos(folder, "data.photos"))


def test_samples_are_flipped_as_the_order_says(square_photos: PhotoFiles) -> None:
    order = SampleOrder(len(square_photos), 3)
    numbers, flips = order.draw(0, 20)
    batch = next(training_batches(square_photos, order, 0, 20, DataConfig(size=SIZE), rank(0, 1)))
    assert batch.numbers.tolist() == numbers.tolist()
    assert len({tuple(flip) for flip in flips.tolist()}) == 4
    for image, number, (horizontal, vertical) in zip(batch.rgb_u8_NHWC, numbers, flips, strict=True):
        expected = np.asarray(Image.open(square_photos.paths[number]))
        expected = expected[:, ::-1] if horizontal else expected
        expected = expected[::-1] if vertical else expected
        np.testing.assert_array_equal(image.numpy(), expected)


def test_flips_that_are_off_do_not_happen(square_photos: PhotoFiles) -> None:
    data = DataConfig(size=SIZE, flip_horizontal=False, flip_vertical=False)
    batch = next(training_batches(square_photos, SampleOrder(10, 3), 0, 10, data, rank(0, 1)))
    images = load_images(Subset(square_photos, batch.numbers.tolist()), data, rank(0, 1))
    assert torch.equal(batch.rgb_u8_NHWC, images)


@pytest.mark.parametrize("smallest_crop", [1.0, 0.5])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_slice_the_global_batch(square_photos: PhotoFiles, ranks: int, smallest_crop: float) -> None:
    data, order = DataConfig(size=SIZE, smallest_crop=smallest_crop), SampleOrder(10, 3)

    def batches(world: World) -> list[torch.Tensor]:
        return [batch.rgb_u8_NHWC for batch in islice(training_batches(square_photos, order, 0, 12, data, world), 3)]

    together = zip(*(batches(rank(number, ranks)) for number in range(ranks)), strict=True)
    for whole, slices in zip(batches(rank(0, 1)), together, strict=True):
        assert torch.equal(whole, torch.cat(slices))


@pytest.mark.parametrize("smallest_crop", [1.0, 0.5])
def test_the_stream_resumes_from_any_position(square_photos: PhotoFiles, smallest_crop: float) -> None:
    data, order = DataConfig(size=SIZE, smallest_crop=smallest_crop), SampleOrder(10, 3)
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
    found = load_images(PhotoFiles([path]), DataConfig(size=SIZE), rank(0, 1))[0].numpy()
    assert np.abs(found - expected).max() <= tolerances.DECODE_LEVELS


@pytest.mark.parametrize(("fit", "corners_black"), [("stretch", False), ("crop", False), ("pad", True)])
def test_every_fit_makes_a_square(tmp_path: Path, fit: FitName, corners_black: bool) -> None:
    Image.new("RGB", (60, 20), "white").save(tmp_path / "wide.png")
    image = load_images(PhotoFiles([tmp_path / "wide.png"]), DataConfig(size=SIZE, fit=fit), rank(0, 1))[0]
    assert image.shape == (SIZE, SIZE, 3)
    assert bool((image[0, 0] == 0).all()) == corners_black
    assert bool((image[SIZE // 2, SIZE // 2] == 255).all())


def test_crop_keeps_the_center_undistorted(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste(paint_photo(0, SIZE, SIZE), (32, 0))
    wide.save(tmp_path / "wide.png")
    image = load_images(PhotoFiles([tmp_path / "wide.png"]), DataConfig(size=SIZE, fit="crop"), rank(0, 1))[0]
    np.testing.assert_array_equal(image.numpy(), np.asarray(paint_photo(0, SIZE, SIZE)))


def test_no_photographs_make_an_empty_batch() -> None:
    assert load_images(PhotoFiles([]), DataConfig(size=SIZE), rank(0, 1)).shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("shard_format", ["raw", "jpeg"])
def test_every_loader_and_cache_gives_the_same_batches_from_shards(
    prepared: Prepare,
    shard_format: Literal["raw", "jpeg"],
    loader: Literal["dali", "torch"],
    cache: Literal["none", "host", "device"],
) -> None:
    folder = prepared(shard_format)
    samples = ShardSamples(folder, "train", read_set(folder, "data.shards").options)
    order = SampleOrder(len(samples), 3)
    data = DataConfig(size=SIZE, loader=loader, cache=cache)
    # A cache is made by all ranks together: see test_host_cache.
    world, places = (rank(1, 2), (11, 21, 31)) if cache == "none" else (rank(0, 1), (6, 11, 16))
    global_size = 5 * world.size
    with closing(training_batches(samples, order, 6, global_size, data, world)) as batches:
        for place in places:
            batch = next(batches)
            numbers, flips = order.draw(place, 5)
            assert batch.numbers.tolist() == numbers.tolist()
            for image, number, (horizontal, vertical) in zip(batch.rgb_u8_NHWC, numbers, flips, strict=True):
                expected = samples.read(int(number))
                if shard_format == "jpeg":
                    expected = np.asarray(Image.open(io.BytesIO(expected.tobytes())))
                expected = expected[:: -1 if vertical else 1, :: -1 if horizontal else 1]
                np.testing.assert_array_equal(image.numpy(), expected)


def test_torch_loader_resizes_photographs_as_prepare_does(photos: Path) -> None:
    files = PhotoFiles(find_photos(photos, "data.photos"))
    images = load_images(files, DataConfig(size=SIZE, loader="torch", threads=1), rank(0, 1))
    for image, path in zip(images, files.paths, strict=True):
        np.testing.assert_array_equal(image.numpy(), to_square(path.read_bytes(), SquareFit(size=SIZE, fit="stretch")))


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("harm", ["vanished", "damaged"])
def test_photograph_that_turns_unreadable_is_replaced_by_the_next(
    painted: Path, tmp_path: Path, loader: Literal["dali", "torch"], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(painted, tmp_path / "photos")
    files = PhotoFiles(find_photos(tmp_path / "photos", "data.photos"))
    lost = files.paths[4]
    if harm == "vanished":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:40])
    data = DataConfig(size=SIZE, loader=loader, flip_horizontal=False, flip_vertical=False)
    order = SampleOrder(len(files), 0)
    with closing(training_batches(files, order, 0, 5, data, rank(0, 1))) as batches:
        for start in range(0, 60, 5):  # four epochs
            batch = next(batches)
            wanted = [5 if number == 4 else number for number in order.draw(start, 5)[0].tolist()]
            assert batch.numbers.tolist() == wanted
            for image, number in zip(batch.rgb_u8_NHWC, wanted, strict=True):
                np.testing.assert_array_equal(image.numpy(), np.asarray(Image.open(files.paths[number])))
    printed = capsys.readouterr().err
    assert printed.count(f"{lost} cannot be read") == 1
    assert "replaced by the next one (1 of 15 so far)" in printed


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_run_stops_if_too_many_photographs_turn_unreadable(
    painted: Path, tmp_path: Path, loader: Literal["dali", "torch"]
) -> None:
    shutil.copytree(painted, tmp_path / "photos")
    files = PhotoFiles(find_photos(tmp_path / "photos", "data.photos"))
    for path in files.paths[:4]:
        path.write_bytes(b"")
    data = DataConfig(size=SIZE, loader=loader, max_unreadable=0.2)
    batches = training_batches(files, SampleOrder(len(files), 0), 0, 5, data, rank(0, 1))
    with pytest.raises(UserError, match=r"data.max_unreadable=0.2: 4 of 15 photographs became unreadable"):
        list(islice(batches, 3))


@pytest.mark.parametrize("is_resident", [False, True])
def test_a_batch_that_a_gpu_gathers_is_the_one_that_the_host_stacks(is_resident: bool) -> None:
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (7, 6, 5, 3), np.uint8))
    drawn, flips = draw.integers(0, 7, 9), draw.integers(0, 2, (9, 2)).astype(bool)
    moved: list[torch.Size] = []

    def to_gpu(host: torch.Tensor) -> torch.Tensor:
        moved.append(host.shape)
        return host

    batch = gather(*picked(images, is_resident, drawn, flips, to_gpu))
    assert torch.equal(batch, stacked(images, drawn, flips))
    assert moved == [(9, 3), *([] if is_resident else [(9, 6, 5, 3)])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("cache", "smallest_crop", "left"), [("device", 1.0, True), ("device", 0.5, False), ("host", 1.0, False)]
)
def test_a_batch_in_the_memory_of_a_gpu_is_left_to_the_step_unless_it_is_cropped(
    square_photos: PhotoFiles, cache: Literal["host", "device"], smallest_crop: float, left: bool
) -> None:
    gpu = World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0))
    order, data = SampleOrder(10, 3), DataConfig(size=SIZE, cache=cache, smallest_crop=smallest_crop)
    for batch, on_cpu in zip(
        training_batches(square_photos, order, 0, 4, data, gpu),
        islice(training_batches(square_photos, order, 0, 4, data, rank(0, 1)), 3),
        strict=False,
    ):
        assert (batch.picks is not None) == left
        images = batch.rgb_u8_NHWC if batch.picks is None else gather(batch.rgb_u8_NHWC, batch.picks)
        assert torch.equal(batch.numbers, on_cpu.numbers)
        if smallest_crop == 1:
            assert torch.equal(images.cpu(), on_cpu.rgb_u8_NHWC)


def test_dali_hands_over_its_memory_and_leaves_alone_what_is_held(
    square_photos: PhotoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[int] = []

    def noted(images: Any, numbers: Any) -> Batch:
        addresses.append(images.as_tensor().data_ptr())
        return handed_over(images, numbers)

    monkeypatch.setattr(pipeline, "handed_over", noted)
    data, order = DataConfig(size=SIZE, loader="dali"), SampleOrder(10, 3)
    with closing(training_batches(square_photos, order, 0, 4, data, rank(0, 1))) as batches:
        held = [(batch.rgb_u8_NHWC, batch.rgb_u8_NHWC.clone()) for batch in islice(batches, 8)]
    assert [images.data_ptr() for images, _ in held] == addresses
    assert len(set(addresses)) == 8
    assert all(torch.equal(images, first) for images, first in held)


def test_dali_has_two_batches_to_decode_while_one_is_trained_on(
    square_photos: PhotoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[None] = []
    next_batch = pipeline._ReadAhead.next_batch

    def noted(read_ahead: pipeline._ReadAhead) -> tuple[Any, ...]:
        requested.append(None)
        return next_batch(read_ahead)

    monkeypatch.setattr(pipeline._ReadAhead, "next_batch", noted)
    data, order = DataConfig(size=SIZE, loader="dali"), SampleOrder(10, 3)
    with closing(training_batches(square_photos, order, 0, 4, data, rank(0, 1))) as batches:
        assert [len(requested) for _ in islice(batches, 3)] == [3, 4, 5]


@pytest.mark.parametrize(
    "reason", ["Can't allocate 8192 bytes on device 0.", "CUDA runtime API error cudaErrorMemoryAllocation (2):"]
)
def test_dali_without_memory_blames_no_photograph(
    square_photos: PhotoFiles, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(images: Any, numbers: Any) -> Batch:
        raise RuntimeError(f"Critical error in pipeline:\n{reason}\nCurrent pipeline object is no longer valid.")

    monkeypatch.setattr(pipeline, "handed_over", refuse)
    data, order = DataConfig(size=SIZE, loader="dali"), SampleOrder(10, 3)
    with pytest.raises(
        UserError,
        match=re.escape(f"data.loader=dali: DALI found no memory for batches of 4 images in each rank ({reason}"),
    ):
        next(training_batches(square_photos, order, 0, 4, data, rank(0, 1)))
    assert capsys.readouterr().err == ""


def test_cache_that_does_not_fit_into_memory_is_refused(square_photos: PhotoFiles) -> None:
    many = Subset(square_photos, [0] * 10**7)
    with pytest.raises(UserError, match=r"data.cache=host: 10000000 images of 4096 px take .* GiB"):
        next(training_batches(many, SampleOrder(1, 0), 0, 1, DataConfig(size=4096, cache="host"), rank(0, 1)))
