"""The packages that users install: the sdist builds the wheel, and the wheel alone is the whole tool, in any folder."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hpc_recolor import __version__
from tests.conftest import ROOT, TINY, changed, error_line
from tests.support.commands import Done, environment

pytestmark = pytest.mark.slow

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
# Folders of the repository that are not in it: made by tools.
MADE = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")


def build(kind: str, source: Path, into: Path) -> Path:
    """The sdist or wheel of a source tree, built without a network."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", into], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*MADE))
    (folder / "built").mkdir()
    with tarfile.open(build("sdist", folder / "source", folder / "built")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("hpc_recolor-*")
    return unpacked


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the wheel of the sdist into."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "built").mkdir()
    wheel = build("wheel", sdist, folder / "built")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, folder / "site", wheel], check=True, timeout=120)
    return folder / "site"


def run_installed(installed: Path, folder: Path, module: str, *arguments: object) -> Done:
    """A module of the wheel, in a folder that has nothing of the repository."""
    path = [
        str(installed),
        *(path for path in os.environ.get("PYTHONPATH", "").split(":") if path and Path(path) != ROOT),
    ]
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env=environment() | {"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_sdist_holds_the_tests_and_what_they_need(sdist: Path) -> None:
    for folder in ("tests", "benchmarks", "configs", "docs", "slurm", "kernels"):
        present = {name for name in files_below(ROOT / folder) if "__pycache__" not in name}
        assert present <= files_below(sdist / folder)
    for name in ("Makefile", "constraints.txt", "CHANGELOG.md", "LICENSE", ".ci/run", "pyproject.toml"):
        assert (sdist / name).is_file()


def test_the_wheel_holds_all_that_the_tool_reads(installed: Path) -> None:
    package = installed / "hpc_recolor"
    assert files_below(package / "configs") == files_below(ROOT / "configs")
    assert files_below(package / "slurm") == files_below(ROOT / "slurm")
    for folder in ("reporting", "serving", "models/weights"):
        assert files_below(package / folder) == files_below(ROOT / "hpc_recolor" / folder)
    assert (package / "py.typed").is_file() and (installed / "recolor_kernels" / "py.typed").is_file()
    assert {path.name for path in installed.iterdir()} - {"bin", "hpc_recolor", "recolor_kernels"} == {
        f"hpc_recolor-{__version__}.dist-info"
    }


def test_configs_and_profiles_go_by_name_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    shown = run_installed(installed, tmp_path, "hpc_recolor.train", "--config", "quickstart", "--print-config")
    assert "name: quickstart" in shown.stdout, shown.stderr
    unknown = error_line(run_installed(installed, tmp_path, "hpc_recolor.train", "--config", "quikstart"))
    assert "did you mean quickstart?" in unknown and "ablation/..., colorizer, demo, " in unknown
    unknown = error_line(
        run_installed(installed, tmp_path, "hpc_recolor.submit", "--profile", "dev", "--data.photos", ".")
    )
    assert "container_cluster, dev_cluster, gpu_cluster" in unknown


def test_the_program_is_the_console_script_and_shows_a_job_without_a_cluster(
    installed: Path, tmp_path: Path, photos: Path
) -> None:
    program = (installed / "bin" / "hpc-recolor").read_text()
    assert "from hpc_recolor.__main__ import main" in program
    assert run_installed(installed, tmp_path, "hpc_recolor", "--version").stdout == f"{__version__}\n"
    flags = ("--profile", "dev_cluster", "--data.photos", photos, "--dry-run")
    shown = run_installed(installed, tmp_path, "hpc_recolor", "submit", "--nodes", "4", *flags)
    assert "#SBATCH --partition=main" in shown.stdout and "rank 3 of 4" in shown.stdout, shown.stderr
    assert "study-small" in run_installed(installed, tmp_path, "hpc_recolor", "study").stdout


def test_the_scripts_of_the_one_machine_cluster_run(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEV_CLUSTER", str(tmp_path / "none"))
    done = run_installed(installed, tmp_path, "hpc_recolor.dev_cluster", "status")
    assert done.returncode == 1
    assert "slurmctld  does not run" in done.stdout
    assert "python -m hpc_recolor.dev_cluster up" in done.stdout


def test_photographs_are_trained_on_and_colored_in_an_empty_folder(
    installed: Path, tmp_path: Path, photos: Path
) -> None:
    flags = changed(TINY, **{"data.photos": photos, "run.name": "mine"})
    trained = run_installed(installed, tmp_path, "hpc_recolor.train", "--config", "quickstart", *flags)
    assert trained.returncode == 0, trained.stderr
    for run in ((), ("--run", "runs/mine")):
        colored = run_installed(
            installed, tmp_path, "hpc_recolor.colorize", photos / "photo01.jpg", "--out", "out", *run
        )
        assert colored.stdout == "out/photo01.png\n", colored.stderr


def test_the_demo_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    short = ("--train.epochs", "1", "--model.width", "2", "--train.batch_size", "32", "--train.device", "cpu")
    done = run_installed(installed, tmp_path, "hpc_recolor.demo", *short)
    assert done.returncode == 0, done.stderr
    assert "ab error on" in done.stdout
