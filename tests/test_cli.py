"""Who prints an error: every command but those that a launcher starts on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_recolor import __version__, checkpoint, cli, jobs, train
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
    assert cli.run(cli.program(), ["train", "--train.epochs", "0"]) == BAD_INPUT
    assert capsys.readouterr().err == ""
    assert cli.run(cli.program(), ["jobs", "list", "--nonsense"]) == BAD_INPUT
    assert "--nonsense" in capsys.readouterr().err


def test_the_program_says_its_version_and_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.program(), ["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    for arguments in ([], ["--help"]):
        assert cli.run(cli.program(), arguments) == 0
        listed = capsys.readouterr().out
        for name, meaning in cli.COMMANDS.items():
            assert f"│ {name} " in listed and meaning in listed
        assert listed.count("╭─") == 2  # commands, and options of the program


def test_the_program_runs_a_command_as_its_module_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = []
    for app, name in ((train.app, []), (cli.program(), ["train"])):
        assert cli.run(app, [*name, "--help"]) == 0
        assert cli.run(app, [*name, "--config", "quickstart", "--print-config"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].startswith("Usage: hpc-recolor train [OPTIONS]\n\nTrain a colorizer on a folder of photographs, or")


def test_a_misspelled_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.program(), ["trian"]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: Unknown command "trian". Did you mean "train"?')


def test_the_program_imports_no_command_that_it_does_not_run() -> None:
    check = """
import sys
from hpc_recolor import cli
cli.run(cli.program(), sys.argv[1:])
sys.exit(any(f"hpc_recolor.{name}" in sys.modules for name in cli.COMMANDS if name not in sys.argv))
"""
    for arguments in (["--help"], ["--version"], ["jobs", "list"]):
        subprocess.run([sys.executable, "-c", check, *arguments], check=True, capture_output=True)


def test_the_shell_completes_commands_and_flags(tmp_path: Path) -> None:
    script = tmp_path / "hpc-recolor.sh"
    script.write_text(cli.program().generate_completion(shell="bash"))
    ask = f"""
source {script}
complete_words() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
  $(complete -p hpc-recolor | sed 's/.*-F \\([^ ]*\\).*/\\1/') hpc-recolor "${{@: -1}}"; echo "${{COMPREPLY[@]}}"; }}
complete_words hpc-recolor tr
complete_words hpc-recolor jobs res
complete_words hpc-recolor train --train.ep
"""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.stdout.split() == ["train", "restart", "--train.epochs"], done.stderr


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
