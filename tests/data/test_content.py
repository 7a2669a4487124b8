"""Hashes of contents, kept between commands."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_recolor.data.content import content_hashes
from hpc_recolor.data.entries import Entry
from hpc_recolor.runtime import progress


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def entry(file: Path, read: list[str]) -> Entry:
    def content() -> bytes:
        read.append(file.name)
        return file.read_bytes()

    return Entry(name=file.name, size_bytes=0, read=content, file=file)


def test_only_new_and_changed_files_are_read(tmp_path: Path, read: list[str]) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file in files:
        file.write_bytes(b"same")
    entries = [entry(file, read) for file in files]
    first = content_hashes(entries)
    assert content_hashes(entries) == first == [first[0]] * 3
    assert sorted(read) == ["a", "b", "c"]
    files[1].write_bytes(b"also")  # as long as before
    os.utime(files[1], ns=(files[0].stat().st_atime_ns, files[0].stat().st_mtime_ns))
    assert content_hashes(entries)[1] != first[1]
    assert read[3:] == ["b"]


def test_a_file_that_cannot_be_read_has_no_hash_and_is_tried_again(tmp_path: Path, read: list[str]) -> None:
    missing = entry(tmp_path / "missing", read)
    assert content_hashes([missing]) == [""]
    missing.file.touch()
    assert content_hashes([missing]) != [""]


def test_photographs_of_one_archive_have_hashes_of_their_own(tmp_path: Path, read: list[str]) -> None:
    archive = tmp_path / "archive.zip"
    archive.touch()
    entries = [Entry(name, 1, name.encode, archive) for name in ("a", "b")]
    hashes = content_hashes(entries)
    assert hashes[0] != hashes[1]
    assert content_hashes(entries) == hashes


def test_a_damaged_cache_is_as_none(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "file").touch()
    one = entry(tmp_path / "file", read)
    content_hashes([one])
    (cache,) = (tmp_path / "cache" / "hpc_recolor").iterdir()
    whole = cache.read_bytes()
    for damaged in (b"no database", whole[:5000], whole.replace(b"inode_changed", b"inode_removed")):
        cache.write_bytes(damaged)
        assert content_hashes([one]) != [""]


def test_without_a_place_for_the_cache_every_file_is_read(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    one = entry(tmp_path / "file", read)
    assert content_hashes([one]) == content_hashes([one])
    assert read == ["file", "file"]


def test_the_cost_of_hashing_is_printed_where_it_is_high(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.touch()
    entries = [replace(entry(file, read), size_bytes=700_000_000) for file in files]
    content_hashes(entries[:1])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LONG_S", 0)
    content_hashes(entries)
    assert capsys.readouterr().err == "hashed 1 photographs, 0.7 GB, in 0 s; again only those that change\n"
