"""A file is replaced as a whole, whoever else writes it and whatever it is called."""

import os
from pathlib import Path

import pytest

from hpc_recolor.run_folder.files import write_atomically


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
