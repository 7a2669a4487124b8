"""The README of a run folder: right about the run, and never in its way."""

import re
import shlex
from pathlib import Path

import pytest

from hpc_recolor.config_file import load_config
from hpc_recolor.run_folder.folder import RunFolder, claim, find_run
from hpc_recolor.run_folder.run_readme import write_readme


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("my runs") / "my_run")
    claim(folder, CONFIG)
    return folder


CONFIG = load_config(None, {"run": {"folder": "my runs", "name": "my_run"}, "data": {"photos": "photos", "size": 64}})


def test_it_says_what_the_run_is_and_each_command_names_it(run: RunFolder, tmp_path: Path) -> None:
    write_readme(run, CONFIG, 1200, "stopped after image 40 of 960")
    text = (run.path / "README.md").read_text()
    assert "unet, lab, 64 px, with an adversary (bce), on 1,200 photographs of photos" in text
    assert "Stopped after image 40 of 960, as of 20" in text
    cd, *commands = (shlex.split(line, comments=True) for line in re.findall(r"^    (.+)$", text, re.MULTILINE))
    assert cd == ["cd", str(tmp_path)]
    assert [words[2].removeprefix("hpc_recolor.") for words in commands] == ["train", "evaluate", "report", "colorize"]
    assert all(any(word.startswith("my runs/my_run") for word in words) for words in commands)


def test_a_readme_of_the_user_stays_and_ours_is_renewed(run: RunFolder) -> None:
    file = run.path / "README.md"
    write_readme(run, CONFIG, 12, "training")
    write_readme(run, CONFIG, 12, "finished")
    assert "Finished" in file.read_text()
    file.write_text("mine")
    write_readme(run, CONFIG, 12, "finished")
    assert file.read_text() == "mine"


def test_one_that_cannot_be_written_is_no_obstacle(run: RunFolder) -> None:
    (run.path / "README.md").mkdir()
    write_readme(run, CONFIG, 12, "training")
    assert find_run(CONFIG).path == run.path
