"""The code of a submission stays what it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_recolor.launch import snapshot
from hpc_recolor.runtime.code_version import COMMIT_FILE, code_commit


def test_a_snapshot_is_written_once_and_a_copy_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    found = snapshot.capture(tmp_path)
    interrupted = found.path.with_name(f".{found.path.name}.copying")
    (interrupted / "hpc_recolor").mkdir(parents=True)
    found.write()
    assert not interrupted.exists()
    files = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*.py")}
    assert {"hpc_recolor/train.py", "recolor_kernels/reference.py"} <= files
    assert not list(found.path.rglob("__pycache__"))
    (found.path / "hpc_recolor" / "train.py").write_text("touched")
    snapshot.capture(tmp_path).write()
    assert (found.path / "hpc_recolor" / "train.py").read_text() == "touched"
    assert (found.path / COMMIT_FILE).read_text() == (code_commit() or "")


def test_python_runs_the_snapshot_wherever_it_is_started(tmp_path: Path) -> None:
    found = snapshot.capture(tmp_path)
    found.write()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("hpc_recolor.py", "random.py"):
        (elsewhere / name).write_text("raise SystemExit('what lay in the working directory was run')")
    code = "import hpc_recolor, random, recolor_kernels as k; print(hpc_recolor.__file__); print(k.__file__)"
    environment = {"PYTHONPATH": str(found.path), "PYTHONSAFEPATH": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(found.path)) for line in done.stdout.splitlines())


def captured(packages: Path, into: Path) -> list[str]:
    """Path, commit and length of the difference of a snapshot of the packages that lie there, written into `into`."""
    code = (
        "import sys; from pathlib import Path; from hpc_recolor.launch import snapshot;"
        "found = snapshot.capture(Path(sys.argv[1])); found.path.parent.mkdir(exist_ok=True); found.write();"
        "print(found.path, found.commit, len(found.difference), sep='\\n')"
    )
    return run_python(packages, "-c", code, str(into)).splitlines()


def run_python(packages: Path, *arguments: str) -> str:
    """What Python prints with those packages, as a rank has them, in the root folder."""
    environment = {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, *arguments], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A copy of our packages in no git repository."""
    for name, root in snapshot._package_roots().items():
        shutil.copytree(root, tmp_path / "packages" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "packages"


def test_outside_git_code_is_known_by_its_content_alone(packages: Path, tmp_path: Path) -> None:
    path, commit, difference = captured(packages, tmp_path / "code")
    assert (commit, difference) == ("None", "0")
    assert (Path(path) / "hpc_recolor" / "train.py").is_file()
    assert captured(packages, tmp_path / "code")[0] == path


def test_any_change_of_a_file_makes_another_snapshot(packages: Path, tmp_path: Path) -> None:
    first = captured(packages, tmp_path / "code")[0]
    with (packages / "hpc_recolor" / "train.py").open("a") as file:
        file.write("#")
    changed = captured(packages, tmp_path / "code")[0]
    (packages / "hpc_recolor" / "train.py").rename(packages / "hpc_recolor" / "train2.py")
    renamed = captured(packages, tmp_path / "code")[0]
    assert len({first, changed, renamed}) == 3
    assert not (Path(first) / "hpc_recolor" / "train.py").read_text().endswith("#")


def test_what_runs_from_a_snapshot_says_the_commit_that_was_submitted(tmp_path: Path) -> None:
    found = snapshot.capture(tmp_path)
    found.write()
    code = "from hpc_recolor.runtime.code_version import code_commit; print(code_commit())"
    assert run_python(found.path, "-c", code).strip() == str(code_commit())
    (found.path / COMMIT_FILE).write_text("abc1234-dirty")
    assert run_python(found.path, "-c", code).strip() == "abc1234-dirty"


def test_a_snapshot_of_a_snapshot_is_the_same(tmp_path: Path) -> None:
    found = snapshot.capture(tmp_path)
    found.write()
    (path, commit, _) = captured(found.path, tmp_path / "again")
    assert Path(path).name == found.path.name
    assert commit == str(found.commit)
