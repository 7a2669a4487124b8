"""The code of a submission: a copy of our packages, so that a job runs the submitted code even if it is requeued days
later and the working tree has changed."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hpc_recolor.runtime.code_version import COMMIT_FILE, code_commit, git

PACKAGES = ("hpc_recolor", "recolor_kernels")
HASH_LENGTH = 16


@dataclass(frozen=True)
class Snapshot:
    """A copy of our packages.

    path: the folder for PYTHONPATH, named by a hash of the content; difference: from the commit, as a patch; files:
    source file of each path in the copy.
    """

    path: Path
    commit: str | None
    difference: bytes
    files: dict[str, Path]

    def write(self) -> None:
        """Copy the files, and store commit and difference next to them, unless the copy exists."""
        if self.path.is_dir():
            return
        partial = self.path.with_name(f".{self.path.name}.copying")
        shutil.rmtree(partial, ignore_errors=True)
        for name, file in self.files.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (partial / COMMIT_FILE).write_text(self.commit or "")
        (partial / "diff.patch").write_bytes(self.difference)
        partial.rename(self.path)


def capture(into: Path) -> Snapshot:
    """A snapshot of our packages as they are now, to be written to `into`/HASH."""
    roots = _package_roots()
    files = {
        f"{name}/{file.relative_to(root).as_posix()}": file
        for name, root in roots.items()
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    digest = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    difference = _difference(roots["hpc_recolor"].parent)
    return Snapshot(into / digest.hexdigest()[:HASH_LENGTH], code_commit(), difference, files)


def _package_roots() -> dict[str, Path]:
    from importlib.util import find_spec

    roots = {}
    for name in PACKAGES:
        spec = find_spec(name)  # does not import it
        assert spec and spec.origin
        roots[name] = Path(spec.origin).parent
    return roots


def _difference(folder: Path) -> bytes:
    """The difference from the commit, as input of `git apply`; empty outside a work tree."""
    try:
        return git(folder, "diff", "HEAD", "--", "hpc_recolor", "kernels")
    except (OSError, subprocess.SubprocessError):
        return b""
