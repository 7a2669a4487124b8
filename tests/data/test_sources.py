"""Which photographs of a folder are taken, and which are left out."""

import warnings
from pathlib import Path

import pytest

from hpc_recolor.config import DataConfig
from hpc_recolor.data.entries import list_entries
from hpc_recolor.data.sources import find_photos, find_unreadable_photos
from hpc_recolor.runtime.errors import UserError
from tests.conftest import paint_photo
from tests.support.prepared_sets import Prepare


def test_nested_folders_are_searched_and_hidden_ones_are_not(photos: Path, tmp_path: Path) -> None:
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "album").mkdir()
    for place in (tmp_path / ".thumbnails", tmp_path / "album"):
        paint_photo(0).save(place / "photo.JPG")
    (tmp_path / "notes.txt").write_text("no photograph")
    assert find_photos(tmp_path, "data.photos") == [tmp_path / "album" / "photo.JPG"]
    assert len(find_photos(photos, "data.photos")) == 15


def test_a_photograph_is_one_by_content_too_and_other_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"photo": "JPEG", "photo.jfif": "JPEG", "photo.avif": "AVIF", "photo.jpg_large": "WEBP"}
    for name, kind in kinds.items():
        paint_photo(0).save(tmp_path / name, kind)
    for name in ("a.PSD", "b.gif", "notes", "table.csv"):
        (tmp_path / name).write_text("no photograph")
    paint_photo(0).save(tmp_path / "c", "GIF")
    assert [path.name for path in find_photos(tmp_path, "data.photos")] == sorted(kinds)
    left_out = ", ".join(str(tmp_path / name) for name in ("a.PSD", "b.gif", "c"))
    assert capsys.readouterr().err == f"left out 3 images of kinds that cannot be read: {left_out}\n"
    assert find_unreadable_photos(find_photos(tmp_path, "data.photos"), DataConfig())[0] == []
    listing = list_entries([tmp_path], tmp_path / "nowhere")
    assert [entry.name.split("/")[1] for entry in listing.entries if not entry.problem] == sorted(kinds)
    problems = [entry.problem for entry in listing.entries if entry.problem]
    assert problems == ["foreign: an image of a kind that cannot be read"] * 3
    assert listing.other_files == 2


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
    bad, _ = find_unreadable_photos(find_photos(tmp_path, "data.photos"), DataConfig())
    assert [photo.path.name for photo in bad] == ["cut.png", "empty.jpg", "moving.jpg", "text.png", "truncated.jpg"]
    assert "DALI" in bad[0].reason
    assert "holds GIF" in bad[2].reason
    assert "truncated" in bad[4].reason.lower()


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    paint_photo(0).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "photos")
    assert find_photos(tmp_path / "photos", "data.photos") == [tmp_path / "photos" / "linked" / "a.png"]


def test_checking_photographs_leaves_warnings_as_they_were(photos: Path) -> None:
    before = list(warnings.filters)
    find_unreadable_photos(find_photos(photos, "data.photos"), DataConfig())
    assert warnings.filters == before


@pytest.mark.parametrize("unfinished", [False, True])
def test_data_sets_are_not_photographs(prepared: Prepare, unfinished: bool) -> None:
    folder = prepared("jpeg")
    if unfinished:
        (folder / "manifest.json").rename(folder / "progress.jsonl")
    paint_photo(0).save(folder.parent / "photo.png")
    assert find_photos(folder.parent, "data.photos") == [folder.parent / "photo.png"]
    with pytest.raises(UserError, match=f"data.photos={folder}: is a prepared data set.*--data.shards"):
        find_photos(folder, "data.photos")
