"""The code of a submission stays what it was."""

import subprocess
import sys
from pathlib import Path

from hpc_recolor.code_version import COMMIT_FILE, code_commit
from hpc_recolor.launch import snapshot


def test_a_snapshot_is_written_once_and_a_copy_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    found = snapshot.look(tmp_path)
    cut_short = found.path.with_name(f".{found.path.name}.copying")
    (cut_short / "hpc_recolor").mkdir(parents=True)
    found.write()
    assert not cut_short.exists()
    files = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*.py")}
    assert {"hpc_recolor/train.py", "recolor_kernels/reference.py"} <= files
    assert not list(found.path.rglob("__pycache__"))
    (found.path / "hpc_recolor" / "train.py").write_text("touched")
    snapshot.look(tmp_path).write()
    assert (found.path / "hpc_recolor" / "train.py").read_text() == "touched"
    assert (found.path / COMMIT_FILE).read_text() == (code_commit() or "")


def test_python_runs_the_snapshot_wherever_it_is_started(tmp_path: Path) -> None:
    found = snapshot.look(tmp_path)
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
