"""The code of a submission: a copy of our packages, so that a job runs what was submitted, also when it is queued again
days later, whatever has become of the working tree meanwhile."""

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
    """path: the folder for PYTHONPATH, named by the content; difference: to the commit; files: where
    each is copied from."""

    path: Path
    commit: str | None
    difference: bytes
    files: dict[str, Path]

    def write(self) -> None:
        """Copy the files, with the commit and the difference to it beside them, unless it has been done."""
        if self.path.is_dir():
            return
        beside = self.path.with_name(f".{self.path.name}.copying")
        shutil.rmtree(beside, ignore_errors=True)
        for name, file in self.files.items():
            target = beside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (beside / COMMIT_FILE).write_text(self.commit or "")
        (beside / "diff.patch").write_bytes(self.difference)
        beside.rename(self.path)


def look(into: Path) -> Snapshot:
    """The snapshot of our packages as they are now, to be written into `into`/HASH."""
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
    """What differs from the commit, as `git apply` takes it; nothing outside a work tree."""
    try:
        return git(folder, "diff", "HEAD", "--", "hpc_recolor", "kernels")
    except (OSError, subprocess.SubprocessError):
        return b""
