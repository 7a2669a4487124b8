"""A file is replaced as a whole, whoever else writes it and whatever it is called."""

import os
import time
from pathlib import Path

import pytest

from hpc_recolor.run_folder.files import temporary_name, write_atomically


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins and ends while the first is about to rename."""
    file, fsync = tmp_path / "file", os.fsync

    def fsync_and_let_another_write(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomically(file, b"another's")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync_and_let_another_write)
    write_atomically(file, b"mine")
    assert file.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["n" * 255, "\N{GRINNING FACE}" * 63])
def test_a_name_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_what_killed_writers_left_of_a_file_goes_with_its_next_write_once_it_is_old(tmp_path: Path) -> None:
    file = tmp_path / ("weights.pt2" * 6)
    old, others, young = (temporary_name(one) for one in (file, tmp_path / "other", file))
    for left in (old, others, young):
        left.write_bytes(b"half")
    for left in (old, others):
        os.utime(left, (time.time() - 3700,) * 2)
    write_atomically(file, b"content")
    assert set(tmp_path.iterdir()) == {file, others, young}


def test_what_cannot_be_removed_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    left = temporary_name(file)
    left.mkdir()
    os.utime(left, (0, 0))
    write_atomically(file, b"content")
    assert file.read_bytes() == b"content" and left.exists()
