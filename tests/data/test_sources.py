"""Which photographs of a folder are taken, and which are left out."""

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from hpc_recolor.config import Config, load_config
from hpc_recolor.data.sources import collect, find_bad_photos, find_photos, fingerprint
from hpc_recolor.distributed import World
from hpc_recolor.errors import UserError
from tests.conftest import paint_photo

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def config(photos: Path, held_out_count: int, seed: int = 0) -> Config:
    data = {"photos": photos, "held_out_count": held_out_count}
    return load_config(None, {"data": data, "run": {"seed": seed}})


def test_nested_folders_are_searched_and_hidden_ones_are_not(photos: Path, tmp_path: Path) -> None:
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "album").mkdir()
    for place in (tmp_path / ".thumbnails", tmp_path / "album"):
        paint_photo(0).save(place / "photo.JPG")
    (tmp_path / "notes.txt").write_text("no photograph")
    assert find_photos(tmp_path, "data.photos") == [tmp_path / "album" / "photo.JPG"]
    assert len(find_photos(photos, "data.photos")) == 15


@pytest.mark.parametrize(("name", "message"), [("missing", "no such folder"), ("empty", "no photographs in it")])
def test_a_folder_without_photographs_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"data.photos=.*{name}: {message}"):
        find_photos(tmp_path / name, "data.photos")


def test_truncated_and_foreign_files_are_found(tmp_path: Path) -> None:
    paint_photo(0).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no photograph")
    (tmp_path / "empty.jpg").touch()
    paint_photo(0).save(tmp_path / "moving.jpg", format="GIF")
    paint_photo(0).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-10])  # Pillow alone would take it
    bad = find_bad_photos(find_photos(tmp_path, "data.photos"))
    assert [photo.path.name for photo in bad] == ["cut.png", "empty.jpg", "moving.jpg", "text.png", "truncated.jpg"]
    assert "DALI" in bad[0].reason
    assert "holds GIF" in bad[2].reason
    assert "truncated" in bad[4].reason.lower()


def test_held_out_photographs_are_disjoint_and_chosen_by_seed(photos: Path) -> None:
    one, again, other = (collect(config(photos, 4, seed), ALONE) for seed in (1, 1, 2))
    assert one == again
    assert one.held_out != other.held_out
    assert len(one.held_out) == 4
    assert sorted(one.train + one.held_out) == find_photos(photos, "data.photos")


def test_too_few_photographs_to_set_aside_are_refused(photos: Path) -> None:
    with pytest.raises(UserError, match=r"data.held_out_count=15 leaves nothing.*has 15 readable"):
        collect(config(photos, 15), ALONE)


def test_a_folder_of_broken_photographs_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no photograph")
    with pytest.raises(UserError, match=r"has 0 readable.*text.png: cannot identify"):
        collect(config(tmp_path, 16), ALONE)


def test_the_fingerprint_notices_another_set_of_photographs(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    paths = find_photos(tmp_path, "data.photos")
    before = fingerprint(tmp_path, paths)
    paths[0].rename(tmp_path / "renamed.png")
    assert fingerprint(tmp_path, find_photos(tmp_path, "data.photos")) != before


def test_pictures_of_runs_among_the_photographs_are_not_learned_from(tmp_path: Path) -> None:
    (tmp_path / "runs" / "train" / "samples").mkdir(parents=True)
    (tmp_path / "runs" / "train" / "config.yaml").touch()
    for place in ("a.png", "b.png", "runs/train/samples/images-1.png"):
        paint_photo(0).save(tmp_path / place)
    sets = collect(config(tmp_path, 1), ALONE)
    assert sorted(sets.train + sets.held_out) == [tmp_path / "a.png", tmp_path / "b.png"]


def test_photographs_held_out_by_folder_are_not_learned_from(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for place in ("a.png", "val/b.png"):
        paint_photo(0).save(tmp_path / place)
    data = {"photos": tmp_path, "held_out": tmp_path / "val"}
    sets = collect(load_config(None, {"data": data}), ALONE)
    assert (sets.train, sets.held_out) == ([tmp_path / "a.png"], [tmp_path / "val" / "b.png"])


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    paint_photo(0).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "photos")
    assert find_photos(tmp_path / "photos", "data.photos") == [tmp_path / "photos" / "linked" / "a.png"]


def test_checking_photographs_leaves_warnings_as_they_were(photos: Path) -> None:
    before = list(warnings.filters)
    find_bad_photos(find_photos(photos, "data.photos"))
    assert warnings.filters == before
