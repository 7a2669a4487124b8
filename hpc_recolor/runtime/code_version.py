"""Which code this is."""

import subprocess
from pathlib import Path

import hpc_recolor

PACKAGE_VERSION = hpc_recolor.__version__

# A copy of the packages, as submitted jobs have, says it in a file beside them.
COMMIT_FILE = "code_commit"


def code_commit() -> str | None:
    """The commit, with -dirty if files differ from it; None where the code lies in no git repository and no copy."""
    package = Path(hpc_recolor.__file__).parent
    noted = package.parent / COMMIT_FILE
    if noted.is_file():
        return noted.read_text().strip() or None
    try:
        described = git(package, "describe", "--always", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None
    return described.decode().strip()


def git(folder: Path, *arguments: str) -> bytes:
    """What git prints there. Raises OSError or SubprocessError."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True, timeout=20).stdout
