"""Names that are not UTF-8, from photographs to the report: each command takes what the one before it wrote."""

import os
from pathlib import Path

import pytest

from tests.conftest import TINY, CommandIn, contents, error_line, paint_photo

FOLDER, PHOTO = os.fsdecode(b"f\xfft"), os.fsdecode(b"caf\xe9\x1b[31m.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of photographs."""
    folder = tmp_path_factory.mktemp("names")
    (folder / FOLDER).mkdir()
    for number in range(8):
        paint_photo(number).save(folder / FOLDER / f"{number}.png")
    paint_photo(8).save(folder / FOLDER / PHOTO)
    (folder / FOLDER / os.fsdecode(b"\xe9.jpg")).write_bytes(b"no photograph")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path, command_in: CommandIn) -> Path:
    """A run on these photographs, resumed once."""
    for epochs in ("1", "2"):
        flags = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--train.epochs": epochs}
        done = command_in(place)("train", "--data.photos", FOLDER, *(part for flag in flags.items() for part in flag))
        assert done.returncode == 0, done.stderr
        assert r"\xe9.jpg: " in done.stderr
    return place / "runs" / "train"


def test_a_run_is_trained_resumed_evaluated_reported_and_exported(
    place: Path, trained: Path, command_in: CommandIn
) -> None:
    command = command_in(place)
    for arguments in (
        ("checkpoint", "verify", trained),
        ("evaluate", trained, "--data", FOLDER),
        ("report", trained, "--out", f"{FOLDER}.html"),
        ("checkpoint", "export", trained, "--out", f"{FOLDER}.safetensors"),
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    assert r"caf\\xe9\\x1b[31m.png" in (place / f"{FOLDER}.html").read_text()


def test_colored_copies_keep_their_names(place: Path, trained: Path, command_in: CommandIn) -> None:
    done = command_in(place)("colorize", FOLDER, "--run", trained, "--out", f"{FOLDER}.out")
    assert error_line(done).count(r"f\xfft/\xe9.jpg") == 1
    assert r"f\xfft.out/caf\xe9\x1b[31m.png" in done.stdout.splitlines()
    assert PHOTO in contents(place / f"{FOLDER}.out")


def test_a_data_set_is_prepared_once_and_checked(place: Path, trained: Path, command_in: CommandIn) -> None:
    command = command_in(place)
    arguments = (FOLDER, "--out", f"{FOLDER}.set", "--size", "32")
    assert command("prepare", *arguments).returncode == 0
    assert "nothing to do" in command("prepare", *arguments).stdout
    done = command("doctor", f"{FOLDER}.set")
    assert "all can be decoded" in done.stdout and "Traceback" not in done.stderr


def test_a_run_folder_that_tensorboard_cannot_write_is_refused(place: Path, command_in: CommandIn) -> None:
    before = contents(place)
    line = error_line(command_in(place)("train", "--data.photos", FOLDER, *TINY, "--run.folder", f"{FOLDER}.runs"))
    assert r"run.folder=f\xfft.runs: is not UTF-8" in line
    assert contents(place) == before
