"""What `submit` takes from hpc_recolor.yaml, here and in ~/.config, and what it says of where values come from."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hpc_recolor.launch.defaults import FILES
from tests.conftest import Command, contents, error_line
from tests.support.commands import Done

HERE, HOME = "hpc_recolor.yaml", "~/.config/hpc_recolor.yaml"


@pytest.fixture(autouse=True)
def no_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without SLURM, with an empty home."""
    home = tmp_path_factory.mktemp("home")
    (home / ".config").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home))
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, dict[str, object]], None]:
    """Writes one of the two files."""

    def write_file(name: str, values: dict[str, object]) -> None:
        file = Path(name).expanduser() if name == HOME else tmp_path / name
        file.write_text(yaml.safe_dump(values))

    return write_file


Write = Callable[[str, dict[str, object]], None]


def values_by_source(done: Done) -> dict[str, set[str]]:
    """The lines `#   from SOURCE: key=value, ...` of a dry run."""
    assert done.returncode == 0, done.stderr
    _, _, lines = done.stdout.partition("# values\n")
    split = (line.removeprefix("#   from ").split(": ", 1) for line in lines.splitlines() if " from " in line)
    return {source: set(values.split(", ")) for source, values in split}


def test_the_two_files_are_these() -> None:
    assert FILES == (HOME, HERE)


def test_bare_flags_name_the_missing_one_with_an_example(invoke: Command, tmp_path: Path) -> None:
    line = error_line(invoke("submit", "--nodes", "4"))
    assert line.startswith(
        "error: --data.photos: missing, as is --data.shards; for example: python -m hpc_recolor.submit"
    )
    assert "--data.photos DIR; or write `data: {photos: DIR}` into hpc_recolor.yaml" in line
    assert contents(tmp_path) == {}


def test_flags_win_over_the_folder_over_home_over_the_profile(invoke: Command, write: Write, photos: Path) -> None:
    write(HOME, {"account": "mine", "nodes": 8, "data": {"photos": str(photos)}, "memory_gb": 3})
    write(HERE, {"config": "quickstart", "profile": "dev_cluster", "nodes": 4, "train": {"epochs": 7}})
    found = values_by_source(invoke("submit", "--dry-run", "--partition", "urgent", "--train.lr", "1e-3"))
    assert found == {
        "the command line": {"partition=urgent", "train.lr=0.001"},
        HERE: {"config=quickstart", "profile=dev_cluster", "nodes=4", "train.epochs=7"},
        HOME: {"account=mine", "memory_gb=3.0", f"data.photos={photos}"},
        "profile dev_cluster": {"gpus_per_node=0", "time=30:00"},
    }


def test_what_the_files_say_is_in_the_script(invoke: Command, write: Write, photos: Path, tmp_path: Path) -> None:
    write(HERE, {"profile": "dev_cluster", "nodes": 2, "account": "mine", "data": {"photos": str(photos)}})
    before = contents(tmp_path)
    done = invoke("submit", "--dry-run")
    for line in ("#SBATCH --nodes=2", "#SBATCH --account=mine", "#SBATCH --partition=main", "#SBATCH --time=30"):
        assert f"{line}\n" in done.stdout
    assert "rank 1 of 2: node 1, CPUs" in done.stdout
    assert "#   not checked against the cluster: not found on this machine (sinfo is not installed)\n" in done.stdout
    assert contents(tmp_path) == before


def test_a_config_that_a_flag_names_wins_over_the_run_of_the_files(
    invoke: Command, write: Write, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3}")
    write(HERE, {"profile": "dev_cluster", "train": {"epochs": 7, "lr": 0.1}, "data": {"photos": str(photos)}})
    assert {"train.epochs=7", "train.lr=0.1"} <= values_by_source(invoke("submit", "--dry-run"))[HERE]
    found = values_by_source(invoke("submit", "--dry-run", "--config", "mine.yaml"))
    assert "train.lr=0.1" in found[HERE] and "train.epochs=7" not in found[HERE]
    assert found["the command line"] == {"config=mine.yaml"}


def test_shards_that_a_flag_names_replace_the_photographs_of_the_files(
    invoke: Command, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    write(HERE, {"profile": "dev_cluster", "data": {"photos": "photos"}})
    line = error_line(invoke("submit", "--dry-run", "--data.shards", "gone"))
    assert "data.shards=gone: no such folder" in line


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"nodes": "four"}, ["hpc_recolor.yaml: nodes=four", "valid integer"]),
        ({"nodes": 0}, ["hpc_recolor.yaml: nodes=0", "greater than or equal to 1"]),
        ({"partion": "main"}, ["hpc_recolor.yaml: unknown key partion, did you mean partition?"]),
        ({"train": {"epoch": 3}}, ["unknown key train.epoch, did you mean train.epochs?"]),
        ({"time": 1800}, ["time=1800", 'must be in quotes, such as "30:00"']),
        ({"partition": "main\n#SBATCH --wrap=reboot"}, ["partition=", "string should match pattern"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_that_names_it(
    invoke: Command, write: Write, values: dict[str, object], parts: list[str]
) -> None:
    write(HERE, values)
    line = error_line(invoke("submit", "--nodes", "4"))
    assert all(part in line for part in parts), line


def test_without_a_profile_or_to_submit_a_cluster_is_needed(invoke: Command, photos: Path) -> None:
    for flags in (["--dry-run"], ["--profile", "dev_cluster"], ["--profile", "dev_cluster", "--dry-run", "--check"]):
        line = error_line(invoke("submit", "--data.photos", photos, *flags))
        assert line.startswith("error: SLURM: not found on this machine")
