"""Who prints an error: every command but those that a launcher starts on several ranks."""

import os
from pathlib import Path

import pytest

from hpc_recolor import checkpoint, cli, jobs, train
from hpc_recolor.runtime.exit_codes import BAD_INPUT


@pytest.fixture
def rank_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK=1, left over in a shell or set by a launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli, "WAIT_FOR_MAIN_S", 0)


@pytest.mark.usefixtures("rank_1")
def test_a_leftover_rank_does_not_silence_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(jobs.app, ["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out
    assert cli.run(jobs.app, ["status", str(tmp_path)]) == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")
    assert cli.run(checkpoint.app, ["list", "--nonsense"]) == BAD_INPUT
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.usefixtures("rank_1")
def test_of_a_command_on_several_ranks_rank_0_alone_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(train.app, ["--train.epochs", "0"]) == BAD_INPUT
    assert capsys.readouterr().err == ""


def test_a_deleted_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.run(jobs.app, ["list"]) == BAD_INPUT
    assert capsys.readouterr().err == "error: working directory: has been deleted; cd to one that exists\n"


def test_openmp_waits_without_long_busy_loops_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is restored
    monkeypatch.delenv("GOMP_SPINCOUNT")
    for before, after in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is restored
        if before is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        else:
            monkeypatch.setenv("OMP_WAIT_POLICY", before)
        cli.exit_code(lambda: None, distributed=False)
        assert os.environ["OMP_WAIT_POLICY"] == after
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
