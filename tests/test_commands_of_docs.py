"""The commands that README and the guides print: a test or CI runs each, or docs/commands.md says when a hand did."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, CommandIn, paint_photo

GUIDES = ("README.md", "docs/quickstart.md", "docs/tutorial.md", "docs/manual.md")
COMMAND = re.compile(r"(?:python3? -|pip |make |hpc-recolor |torchrun |tensorboard |eval )")
BY_HAND = r"by hand, \d{4}-\d\d-\d\d"
CI = r"`\.ci/(?:run|wheel)`"
TEST = r"`tests/[\w/]+\.py`"
NOT_RUN = r"not run: .+"


def commands_of(page: str) -> list[str]:
    """The commands in a page's blocks of code, without comments and with single spaces."""
    lines = re.findall(r"^    (\S.*)$", (ROOT / page).read_text(), re.MULTILINE)
    return [" ".join(line.split("  #")[0].split()) for line in lines if COMMAND.match(line)]


def listed() -> dict[str, str]:
    """By command, what docs/commands.md says of it."""
    return dict(re.findall(r"^\| `` ?(.+?) ?`` \| (.+) \|$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE))


def test_every_command_is_in_the_list_and_no_other_is() -> None:
    printed = {command for page in GUIDES for command in commands_of(page)}
    assert len(printed) > 40
    assert printed == set(listed())


@pytest.mark.parametrize(("command", "how"), listed().items(), ids=lambda text: str(text)[:60])
def test_the_list_says_who_runs_it(command: str, how: str) -> None:
    assert re.fullmatch(f"(?:{CI}|{TEST}|{BY_HAND}|{NOT_RUN})(?:[,;:] .+)?", how)
    if how.startswith("`.ci/wheel`"):
        name = re.search(r"hpc_recolor\.(\w+)", command)
        assert name and f"recolor {name.group(1)} " in (ROOT / ".ci" / "wheel").read_text()


# What makes the tutorial small.
SMALLER = {
    "--val 50 --test 50": "--val 4 --test 4 --min-side 1",
    "--config quickstart": "--config quickstart --model.width 4 --train.batch_size 4 --train.device cpu",
    "--config finetune": "--config finetune --train.compile=false --train.batch_size 4 --train.device cpu",
}


def test_the_tutorial_is_run_up_to_the_cluster(command_in: CommandIn, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(14):
        paint_photo(number).save(tmp_path / "photos" / f"{number:02d}.png")
    run, seen = command_in(tmp_path), set()
    for line in commands_of("docs/tutorial.md"):
        if "hpc_recolor.dev_cluster" in line:
            break
        for printed, small in SMALLER.items():
            line = line.replace(printed, small)
        if name := re.match(r"python -m hpc_recolor\.(\w+) ", line):
            done = run(name.group(1), *shlex.split(line)[3:])
            warned = name.group(1) == "doctor" and done.returncode == 1  # of this machine
            assert done.returncode == 0 or warned, f"{line}\n{done.stderr}"
            assert line not in seen or "is finished; a larger train.epochs continues it" in done.stdout
            seen.add(line)
    assert len(seen) >= 10
    assert len(list((tmp_path / "colorized").iterdir())) == 14
    assert (tmp_path / "report.html").is_file()
