"""Bad input gets one line that says what to change, exit code 2, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, Command, changed, contents, error_line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--train.epohcs", "3"], ["--train.epohcs", "Did you mean --train.epochs?"]),
        (["--train.epoch", "3"], ["--train.epoch", "Did you mean --train.epochs?"]),
        (["--train.epochs"], ["--train.epochs"]),
        (["--train.epochs", "x"], ["train.epochs=x", "integer"]),
        (["--train.epochs", "1.5"], ["train.epochs=1.5", "integer"]),
        (["--train.epochs", "0"], ["train.epochs=0", "1"]),
        (["--train.lr", "nan"], ["train.lr=nan", "finite"]),
        (["--train.betas", "0.5"], ["train.betas"]),
        (["--train.betas", "0.5", "1.5"], ["train.betas", "1.5", "less than 1"]),
        (["--model.generator", "vgg"], ["model.generator=vgg", "unet", "autoencoder", "resnet"]),
        (["--data.size", "48"], ["data.size=48", "unet", "multiple of 32"]),
        (["--run.name", "../other"], ["run.name=../other"]),
        (["leftover"], ["leftover"]),
    ],
    ids=" ".join,
)
def test_illegal_flags_are_refused(
    invoke: Command, tmp_path: Path, photos: Path, flags: list[str], expected: list[str]
) -> None:
    line = error_line(invoke("train", "--data.photos", photos, *flags))
    assert all(part in line for part in expected), line
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"train:\n  epoch: 3\n", ["train.epoch", "did you mean train.epochs?"]),
        (b"trian:\n  epochs: 3\n", ["trian", "did you mean train?"]),
        (b"train:\n  epochs: three\n", ["train.epochs=three", "integer"]),
        (b"train: 3\n", ["train=3"]),
        (b"train: [1, 2\n: {", ["YAML", "line 2"]),
        (b"- train\n- data\n", ["list"]),
        (b"\xff\xfe\x00\x81", ["YAML"]),
        (None, ["No such file"]),
    ],
    ids=["key", "section", "type", "no section", "no YAML", "list", "binary", "missing"],
)
def test_illegal_config_file_is_refused(
    invoke: Command, tmp_path: Path, photos: Path, text: bytes | None, expected: list[str]
) -> None:
    if text is not None:
        (tmp_path / "mine.yaml").write_bytes(text)
    before = contents(tmp_path)
    line = error_line(invoke("train", "--config", "mine.yaml", "--data.photos", photos))
    assert all(part in line for part in ["mine.yaml", *expected]), line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["data.photos and data.shards: neither is set"]),
        ({"data.photos": "nowhere"}, ["data.photos=nowhere", "no such folder"]),
        ({"data.photos": "notes"}, ["data.photos=notes", "no photographs"]),
    ],
    ids=["not set", "no such folder", "no photographs"],
)
def test_folder_without_photographs_is_refused(
    command: Command, tmp_path: Path, values: dict[str, object], expected: list[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no photograph")
    before = contents(tmp_path)
    line = error_line(command("train", *changed(TINY, **values)))
    assert all(part in line for part in expected), line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"train.batch_size": 13}, ["train.batch_size=13", "12"]),
        ({"model.width": 10**20}, ["model.width"]),
    ],
    ids=["batch larger than the data", "width beyond any memory"],
)
def test_number_too_large_for_the_photographs_or_the_machine_is_refused(
    command: Command, tmp_path: Path, photos: Path, values: dict[str, object], expected: list[str]
) -> None:
    line = error_line(command("train", "--data.photos", photos, *changed(TINY, **values)))
    assert all(part in line for part in expected), line
    assert contents(tmp_path) == {}


def test_batch_that_ranks_cannot_share_is_refused_once(command: Command, tmp_path: Path, photos: Path) -> None:
    result = command("train", "--data.photos", photos, *changed(TINY, **{"train.batch_size": 5}), ranks=2)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: train.batch_size=5: not divisible by world size 2; use a multiple of 2"]
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_even_if_rank_0_is_the_last_to_meet_it(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import os, sys, time\n"
        "from hpc_recolor import cli, train\n"
        "time.sleep(3 if os.environ['RANK'] == '0' else 0)\n"
        "sys.exit(cli.run(train.app, ['--train.epochs', '0']))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launcher, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert [line for line in result.stderr.splitlines() if line.startswith("error:")] == [
        "error: command line: train.epochs=0: input should be greater than or equal to 1; see --help"
    ]


def test_folder_of_somebody_else_is_not_taken_as_run_folder(command: Command, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "diary.txt").write_text("keep me")
    before = contents(tmp_path)
    line = error_line(command("train", "--data.photos", photos, "--run.name", "mine", *TINY, fresh=True))
    assert "runs/mine" in line
    assert contents(tmp_path) == before
