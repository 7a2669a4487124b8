"""What a run is measured on: its own data set, folders, others' data sets; and what cannot be measured."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_recolor import cli, prepare
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.sets import collect
from hpc_recolor.evaluation.photographs import BATCH_SIZE, Photographs, find_photographs
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from tests.conftest import paint_photo
from tests.support.small_runs import ALONE

TRAIN = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(TRAIN + 3 + 2 * BATCH_SIZE + 3):
        paint_photo(number).save(folder / f"{number:02d}.png")
    return folder


def prepared(photos: Path, out: Path, *options: str, size: int = 32) -> Path:
    assert cli.run(prepare.app, [str(photos), "--out", str(out), "--size", str(size), *options]) == 0
    return out


@pytest.fixture(scope="module")
def data_set(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = ("--val", "3", "--test", str(2 * BATCH_SIZE + 3))
    return prepared(photos, tmp_path_factory.mktemp("sets") / "set", *splits)


def config_of(**data: Path | int) -> Config:
    return load_config(None, {"data": {"size": 32, **{key: str(value) for key, value in data.items()}}})


def found(config: Config, folder: Path | None = None) -> Photographs:
    """For a run that has learned from what the config names today."""
    learned = collect(config, ALONE).fingerprint
    return find_photographs(config, folder, learned, ALONE)


def test_a_data_sets_test_split_comes_before_val_and_before_what_was_set_aside(
    photos: Path, data_set: Path, tmp_path: Path
) -> None:
    for place, name, count in (
        (data_set, "test", 2 * BATCH_SIZE + 3),
        (prepared(photos, tmp_path / "with-val", "--val", "4"), "val", 4),
        (prepared(photos, tmp_path / "without"), "held-out", 5),
    ):
        own = found(config_of(shards=place, held_out_count=5))
        assert (own.name, len(own)) == (name, count)


def test_a_run_on_photographs_has_those_that_training_held_out(photos: Path) -> None:
    config = config_of(photos=photos, held_out_count=4)
    own, sets = found(config), collect(config, ALONE)
    assert own.name == "held-out"
    expected = [Path(sets.held_out.name(number)).name for number in range(4)]
    assert [own.label(number) for number in range(4)] == expected


def test_batches_and_the_bytes_in_them_are_the_same_for_any_number_of_ranks(data_set: Path) -> None:
    config = config_of(shards=data_set)
    learned = collect(config, ALONE).fingerprint
    whole = {tuple(batch.numbers.tolist()): batch for batch in found(config).rounds("") if batch}
    assert sorted(number for numbers in whole for number in numbers) == list(range(2 * BATCH_SIZE + 3))
    for size in (2, 4):
        rounds = []
        for rank in range(size):
            world = World(rank, size, rank, torch.device("cpu"))
            alone = find_photographs(config, None, learned, ALONE)
            share = Photographs(alone.name, alone.samples, alone.data, world)
            rounds.append([list(share.rounds("")) for _ in range(2)])  # the second time from memory
        batches = [batch for first, again in rounds for batch in (*first, *again) if batch]
        assert len(batches) == 2 * len(whole)
        for batch in batches:
            assert torch.equal(batch.rgb_u8_NHWC, whole[tuple(batch.numbers.tolist())].rgb_u8_NHWC)
        assert len({len(first) for first, _ in rounds}) == 1  # all take part in as many rounds


def test_a_folders_name_is_made_fit_for_files_and_its_bad_photographs_are_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "my photos, 2"))
    (folder / "05.png").write_bytes(b"no photograph")
    measured = found(config_of(photos=photos), folder)
    assert measured.name == "my-photos--2"
    assert len(measured) == len(list(photos.iterdir())) - 1
    assert "05.png" not in [measured.label(number) for number in range(len(measured))]
    assert "05.png" in capsys.readouterr().err


def test_photographs_are_fitted_as_the_run_fits_them(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    for number in range(2):
        paint_photo(number, 96, 32).save(tmp_path / "wide" / f"{number}.png")
    config = load_config(None, {"data": {"photos": str(tmp_path), "size": 32, "fit": "crop", "held_out_count": 1}})
    (batch,) = found(config, tmp_path / "wide").rounds("")
    assert batch
    original = np.asarray(paint_photo(0, 96, 32))[:, 32:64]
    np.testing.assert_array_equal(batch.rgb_u8_NHWC[0].numpy(), original)


def test_what_does_not_fit_the_run_is_refused(photos: Path, data_set: Path, tmp_path: Path) -> None:
    cropped = prepared(photos, tmp_path / "cropped", "--fit", "crop", "--test", "4")
    without = prepared(photos, tmp_path / "without")
    larger = prepared(photos, tmp_path / "larger", "--test", "4", size=64)
    damaged = Path(shutil.copytree(data_set, tmp_path / "damaged"))
    content = bytearray((damaged / "test-00000.raw").read_bytes())
    content[5] ^= 1
    (damaged / "test-00000.raw").write_bytes(content)
    for folder, expected in (
        (cropped, r"data=.*cropped: was prepared with fit=crop, .* data\.fit=stretch"),
        (larger, r"data=.*larger: was prepared with size=64, .* data\.size=32"),
        (without, r"data=.*without: has neither a test nor a val split"),
        (damaged, r"data=.*damaged: test-00000\.raw differs from what was written"),
        (tmp_path / "nowhere", r"data=.*nowhere: no such folder"),
    ):
        with pytest.raises(UserError, match=expected):
            find_photographs(config_of(shards=data_set), folder, "", ALONE)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_photographs_are_refused(photos: Path, tmp_path: Path, count: int) -> None:
    for number in range(2):
        content = (photos / "00.png").read_bytes() if number < count else b"no photograph"
        (tmp_path / f"{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"data=.*: a test set needs at least two images, this one has {count};"):
        find_photographs(config_of(photos=photos), tmp_path, "", ALONE)
    with pytest.raises(UserError, match=r"data=held-out: a test set needs at least two images, this one has 1;"):
        found(config_of(photos=photos, held_out_count=1))


def test_data_that_is_gone_or_has_changed_since_the_training_is_refused(
    photos: Path, data_set: Path, tmp_path: Path
) -> None:
    for config in (config_of(shards=tmp_path / "gone"), config_of(photos=tmp_path / "gone")):
        with pytest.raises(UserError, match=r"data\.(shards|photos)=.*gone: no longer exists, .* --data DIR"):
            find_photographs(config, None, "", ALONE)
    for config in (config_of(shards=data_set), config_of(photos=photos, held_out_count=3)):
        with pytest.raises(UserError, match=r"data\.(shards|photos)=.*: has changed since the run was trained"):
            find_photographs(config, None, "of others", ALONE)
