"""Which samples a run trains on and which are held out, for a config."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.samples import Samples
from hpc_recolor.data.sets import collect
from hpc_recolor.data.sources import find_photos
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from tests.conftest import paint_photo

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def names(*samples: Samples) -> list[Path]:
    return sorted(Path(some.name(number)) for some in samples for number in range(len(some)))


def config(photos: Path, held_out_count: int, seed: int = 0) -> Config:
    data = {"photos": photos, "held_out_count": held_out_count}
    return load_config(None, {"data": data, "run": {"seed": seed}})


def test_held_out_photographs_are_disjoint_and_chosen_by_seed(photos: Path) -> None:
    one, again, other = (collect(config(photos, 4, seed), ALONE) for seed in (1, 1, 2))
    assert names(one.train) == names(again.train)
    assert names(one.held_out) == names(again.held_out) != names(other.held_out)
    assert len(one.held_out) == 4
    assert names(one.train, one.held_out) == find_photos(photos, "data.photos")


def test_too_few_photographs_to_hold_out_are_refused(photos: Path) -> None:
    with pytest.raises(UserError, match=r"data.held_out_count=15: leaves nothing.*has 15 readable"):
        collect(config(photos, 15), ALONE)


def test_a_folder_of_broken_photographs_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no photograph")
    with pytest.raises(UserError, match=r"has 0 readable.*text.png: foreign"):
        collect(config(tmp_path, 16), ALONE)


def test_the_fingerprint_is_of_names_in_the_folder_and_of_contents(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    for number in range(2):
        Image.new("L", (8, 8), number).save(folder / f"{number}.bmp")
    first = collect(config(folder, 1), ALONE)
    shutil.copytree(folder, tmp_path / "copy")
    assert collect(config(tmp_path / "copy", 1), ALONE).fingerprint == first.fingerprint
    changed = folder / names(first.train)[0].name
    old = changed.read_bytes()
    Image.new("L", (8, 8), 5).save(changed)
    assert len(changed.read_bytes()) == len(old)
    other = collect(config(folder, 1), ALONE)
    assert other.fingerprint != first.fingerprint
    assert other.has_fingerprint(first.old_fingerprint)  # of a run of an earlier version, which could not tell
    changed.write_bytes(old)
    assert collect(config(folder, 1), ALONE).fingerprint == first.fingerprint
    changed.rename(folder / "9.bmp")
    assert collect(config(folder, 1), ALONE).fingerprint != first.fingerprint


def test_images_of_runs_among_the_photographs_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "runs" / "train" / "samples").mkdir(parents=True)
    (tmp_path / "runs" / "train" / "config.yaml").touch()
    for place in ("a.png", "b.png", "runs/train/samples/images-1.png"):
        paint_photo(0).save(tmp_path / place)
    sets = collect(config(tmp_path, 1), ALONE)
    assert names(sets.train, sets.held_out) == [tmp_path / "a.png", tmp_path / "b.png"]


def test_photographs_held_out_by_folder_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for place in ("a.png", "val/b.png"):
        paint_photo(0).save(tmp_path / place)
    data = {"photos": tmp_path, "held_out": tmp_path / "val"}
    sets = collect(load_config(None, {"data": data}), ALONE)
    assert (names(sets.train), names(sets.held_out)) == ([tmp_path / "a.png"], [tmp_path / "val" / "b.png"])


def test_photographs_whose_names_are_not_utf_8_are_trained_on(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        paint_photo(0).save(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    sets = collect(config(tmp_path, 1), ALONE)
    assert (len(sets.train), len(sets.held_out)) == (1, 1)


def test_pipe_that_is_named_like_a_photograph_is_left_out(tmp_path: Path) -> None:
    for number in range(2):
        paint_photo(number).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [bad.path.name for bad in collect(config(tmp_path, 1), ALONE).unreadable] == ["pipe.png"]
