"""A node's own disk: the data set copied there once for all its ranks, and the caches of what is built on the way."""

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
    """Have Triton and torch keep what they build on this node's own disk, unless the user has said where."""
    if scratch:
        try:
            make_private(_folder(scratch))
        except UserError as error:  # this node's own trouble
            raise RankError(str(error)) from None
        for variable, name in CACHES.items():
            os.environ.setdefault(variable, str(_folder(scratch) / name))


def stage(config: Config, scratch: str | None, tells: bool) -> Config:
    """The config with `data.shards` on this node's own disk: copied by one rank, while the node's others wait.

    Where there is no room it stays where it is. tells: whether this rank says what happens. Raises RankError if the
    data set is not there.
    """
    shards = config.data.shards
    if not scratch or not shards:
        return config
    try:
        content = (shards / MANIFEST).read_bytes()
    except OSError as error:
        raise RankError(f"data.shards={shards}: cannot read {MANIFEST} on this node ({error.strerror})") from None
    place = _folder(scratch) / "data" / hashlib.sha256(content).hexdigest()[:HASH_LENGTH]
    try:
        place.parent.mkdir(exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            if not place.is_dir():
                _copy(shards, place, tells)
    except OSError as error:
        print(f"{shards} is read where it is: no copy in {place.parent} ({error.strerror or error})", file=sys.stderr)
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": place})})


def _copy(shards: Path, place: Path, tells: bool) -> None:
    size_bytes = sum(file.stat().st_size for file in shards.rglob("*"))
    free_bytes = shutil.disk_usage(place.parent).free
    if size_bytes > free_bytes:
        raise OSError(f"{size_bytes >> 20} MiB do not fit into {free_bytes >> 20} MiB")
    if tells:
        print(f"copying {size_bytes >> 20} MiB of {shards} to {place}", flush=True)
    beside = place.with_suffix(".copying")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(shards, beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    beside.rename(place)


def _folder(scratch: str) -> Path:
    """Of this user alone: what is built there is run. Raises RankError if this node does not know the place."""
    place = Path(os.path.expandvars(scratch))
    if not place.is_absolute() or "$" in str(place):
        raise RankError(f"scratch={scratch} is '{place}' on this node: name a folder that each node has")
    return place / f"hpc_recolor-{os.geteuid()}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
