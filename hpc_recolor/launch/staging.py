"""The local disk of a node: holds one copy of the data set for all its ranks, and the build caches."""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.data.shards import MANIFEST
from hpc_recolor.launch.job_folder import make_private
from hpc_recolor.runtime.errors import RankError, UserError

HASH_LENGTH = 16
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
}


def keep_caches(scratch: str | None) -> None:
    """Set the build caches of Triton and torch to the node's local disk, unless the user has set them.

    Raises RankError if the folder cannot be used on this node.
    """
    if scratch:
        try:
            make_private(_folder(scratch))
        except UserError as error:  # may concern this node alone
            raise RankError(error.subject, error.problem, error.fix) from None
        for variable, name in CACHES.items():
            os.environ.setdefault(variable, str(_folder(scratch) / name))


def stage(config: Config, scratch: str | None, verbose: bool) -> Config:
    """The config with `data.shards` on this node's local disk, copied by one rank while the node's others wait.

    Returns the config unchanged if the copy does not fit. verbose: whether this rank reports the copy. Raises RankError
    if the data set is missing.
    """
    shards = config.data.shards
    if not scratch or not shards:
        return config
    try:
        content = (shards / MANIFEST).read_bytes()
    except OSError as error:
        raise RankError(
            f"data.shards={shards}",
            f"cannot read {MANIFEST} on this node ({error.strerror})",
            "use a folder that all nodes can read",
        ) from None
    target = _folder(scratch) / "data" / hashlib.sha256(content).hexdigest()[:HASH_LENGTH]
    try:
        target.parent.mkdir(exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.is_dir():
                _copy(shards, target, verbose)
    except OSError as error:
        print(f"{shards} is read in place: no copy in {target.parent} ({error.strerror or error})", file=sys.stderr)
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": target})})


def _copy(shards: Path, target: Path, verbose: bool) -> None:
    size_bytes = sum(file.stat().st_size for file in shards.rglob("*"))
    free_bytes = shutil.disk_usage(target.parent).free
    if size_bytes > free_bytes:
        raise OSError(f"{size_bytes >> 20} MiB needed, {free_bytes >> 20} MiB free")
    if verbose:
        print(f"copying {size_bytes >> 20} MiB of {shards} to {target}", flush=True)
    partial = target.with_suffix(".copying")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(shards, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)


def _folder(scratch: str) -> Path:
    """This user's private folder, because its files are executed. Raises RankError if the path is not absolute here."""
    folder = Path(os.path.expandvars(scratch))
    if not folder.is_absolute() or "$" in str(folder):
        raise RankError(
            f"scratch={scratch}", f"expands to '{folder}' on this node", "name a folder that every node has"
        )
    return folder / f"hpc_recolor-{os.geteuid()}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
