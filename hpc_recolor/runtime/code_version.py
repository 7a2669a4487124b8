"""The version of the running code."""

import subprocess
from pathlib import Path

import hpc_recolor

PACKAGE_VERSION = hpc_recolor.__version__

# Submitted jobs run a copy of the packages, which has the commit in a file beside them.
COMMIT_FILE = "code_commit"


def code_commit() -> str | None:
    """The commit, with -dirty if files differ from it; None if the code is neither in a git repository nor a copy."""
    package = Path(hpc_recolor.__file__).parent
    recorded = package.parent / COMMIT_FILE
    if recorded.is_file():
        return recorded.read_text().strip() or None
    try:
        described = git(package, "describe", "--always", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None
    return described.decode().strip()


def git(folder: Path, *arguments: str) -> bytes:
    """The output of a git command in a folder. Raises OSError or SubprocessError."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True, timeout=20).stdout
