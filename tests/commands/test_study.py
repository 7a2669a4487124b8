"""A study by one command: all rows prepared, trained, measured, and in one report; and again from where it stopped."""

import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from hpc_recolor.config_file import load_config
from hpc_recolor.data.sources import find_photos
from hpc_recolor.launch import study_plan
from hpc_recolor.launch.study_plan import TEST, VAL, on_package_photos, read_runs, run_commands
from tests.conftest import Command, contents, error_line, paint_photo
from tests.support.commands import run_forked
from tests.support.fork_server import ForkServer

LEARNED = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`general` as a folder, `cars` as a .tar, with as many photographs as two rows need."""
    folder = tmp_path_factory.mktemp("sources")
    for source in ("general", "cars"):
        (folder / source).mkdir()
        for number in range(VAL + TEST + LEARNED):
            paint_photo(number, 34, 32).save(folder / source / f"{number:03d}.png")
    with tarfile.open(folder / "cars.tar", "w") as archive:
        archive.add(folder / "cars", "cars")
    for photo in (folder / "cars").iterdir():
        photo.unlink()
    (folder / "cars").rmdir()
    return folder


def write_row(folder: Path, name: str, **changes: str) -> None:
    """A row that trains two epochs of two steps on 32 px."""
    folder.mkdir(exist_ok=True)
    tree = {
        "run": {"name": name, "folder": "runs/tiny"},
        "data": {"shards": f"runs/tiny/data/{name}-{LEARNED}", "size": 32} | changes,
        "model": {"width": 2},
        "train": {"epochs": 2, "batch_size": 4, "threads": 1, "snapshots": [1, 2]},
        "tracking": {"tensorboard": False},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer, tmp_path: Path) -> None:
    """The study's commands run as forks instead of in new interpreters."""

    def run(command: Sequence[str]) -> int:
        _, _, module, *arguments = command
        done = run_forked(fork_server, tmp_path, module, arguments)
        print(done.stderr, file=sys.stderr)
        return done.returncode

    monkeypatch.setattr(study_plan, "_run", run)


def test_all_rows_end_in_one_report_and_again_costs_nothing(
    invoke: Command, forked: None, sources: Path, tmp_path: Path
) -> None:
    for name in ("cars", "general"):
        write_row(tmp_path / "rows", name)
    first = invoke("study", "--configs", "rows", "--photos", sources, "--yes")
    assert first.returncode == 0, first.stderr
    results = tmp_path / "runs" / "tiny"
    page = (results / "report.html").read_text()
    assert "Faithful to vivid" in page
    for name in ("cars", "general"):
        assert name in page
        for data in ("test", "scenes"):
            measured = sorted(path.stem for path in (results / name / "evaluations" / data).glob("*.json"))
            assert measured == ["epoch-0001", "epoch-0002"]
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.safetensors")}
    again = invoke("study", "--configs", "rows", "--photos", sources, "--yes")
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("*.safetensors")}


def test_each_row_may_be_trained_with_several_seeds_into_one_line(
    invoke: Command, forked: None, sources: Path, tmp_path: Path
) -> None:
    write_row(tmp_path / "rows", "cars")
    done = invoke("study", "--configs", "rows", "--photos", sources, "--seeds", "2", "--yes")
    assert done.returncode == 0, done.stderr
    results = tmp_path / "runs" / "tiny"
    seeds = [load_config(results / f"cars-seed{seed}" / "config.yaml", {}).run.seed for seed in (0, 1)]
    assert seeds == [0, 1]
    page = (results / "report.html").read_text()
    assert "Over seeds" in page
    assert re.search(r'<th scope="row">cars</th><td class="n">2</td><td class="n">[\d.]+ ± [\d.]+</td>', page)


@pytest.mark.parametrize("yes", [[], ["--yes"]], ids=["plan", "start"])
@pytest.mark.parametrize(
    ("shards", "parts"),
    [
        ("data/cars", ["data.shards=data/cars", "call it SOURCE-COUNT"]),
        ("data/boats-5", ["neither boats nor boats.tar in it"]),
    ],
)
def test_a_row_without_photographs_is_refused_in_one_line(
    invoke: Command, sources: Path, tmp_path: Path, shards: str, parts: list[str], yes: list[str]
) -> None:
    write_row(tmp_path / "rows", "cars", shards=shards)
    line = error_line(invoke("study", "--configs", "rows", "--photos", sources, *yes))
    assert all(part in line for part in parts)
    assert not (tmp_path / "runs").exists()


def test_without_yes_it_shows_its_plan_and_time_and_starts_nothing(
    invoke: Command, sources: Path, tmp_path: Path
) -> None:
    for name, stated in (("cars", "# Hardware: two CPU cores, about 8 minutes\n"), ("general", "")):
        write_row(tmp_path / "rows", name)
        (tmp_path / "rows" / f"{name}.yaml").write_text(stated + (tmp_path / "rows" / f"{name}.yaml").read_text())
    before = contents(tmp_path)
    done = invoke("study", "--configs", "rows", "--photos", sources)
    assert error_line(done) == "error: --yes: missing, so nothing was started; add it to start all this"
    heading, cars, general, total = done.stdout.splitlines()
    assert heading == "2 runs, into runs/tiny:"
    assert cars.split(maxsplit=1) == ["cars", "2 epochs of 8 photographs, about 8 minutes"]
    assert general.endswith("time unknown") and "training: unknown" in total
    (tmp_path / "rows" / "general.yaml").unlink()
    assert "about 24 minutes" in invoke("study", "--configs", "rows", "--photos", sources, "--seeds", "3").stdout
    assert contents(tmp_path).items() <= before.items()


def test_the_bare_study_is_the_small_one_on_tiles(invoke: Command) -> None:
    done = invoke("study")
    assert "--yes" in error_line(done)
    assert done.stdout.startswith("9 runs, into runs/study-small:")
    assert "12 epochs of 370 photographs, about 3 minutes" in done.stdout  # half of the tiles, as of the photographs


def test_a_folder_without_configs_is_refused_in_one_line(command: Command) -> None:
    assert "no .yaml file in it" in error_line(command("study", "--configs", ".", fresh=True))


def test_a_command_that_fails_ends_the_study_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_commands([["train", "--print-config"], ["train", "--no-such-flag"], ["train", "--print-config"]]) == 2
    printed = capfd.readouterr()
    assert printed.out.count("python -m hpc_recolor.train") == 2
    assert "the same command resumes" in printed.err


@pytest.mark.slow
def test_without_photographs_rows_learn_from_tiles_of_those_in_packages(tmp_path: Path) -> None:
    write_row(tmp_path / "rows", "cars")
    write_row(tmp_path / "rows", "half", shards="data/cars-4")
    small, half = on_package_photos(read_runs(tmp_path / "rows"), tmp_path)
    tiles = {path.name for path in find_photos(tmp_path / "tiles" / "train", "")}
    learned = [{path.name for path in find_photos(row.config.data.photos or Path(), "")} for row in (small, half)]
    assert learned[0] == tiles
    assert learned[1] < tiles
    assert len(learned[1]) == len(tiles) / 2
    for row in (small, half):
        assert load_config(row.file, {}) == row.config
        assert row.config.data.shards is None
        assert row.config.model.width == 2
