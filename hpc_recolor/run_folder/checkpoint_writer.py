"""Saving checkpoints: written beside their final name, committed by one rename, and pruned. See checkpoints.py."""

import errno
import shutil
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

from hpc_recolor.run_folder.checkpoints import (
    MANIFEST,
    MANIFEST_HASH,
    Manifest,
    committed,
    find_damage,
    folder_name,
    manifest_hash,
)
from hpc_recolor.run_folder.files import fsync, to_json, write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.json_text import parse_json

WRITING = ".writing-"
REMOVING = ".removing-"


def begin(run: RunFolder) -> Path:
    """Remove what an earlier process left half written or half removed, and return an empty folder to write into.

    What cannot be removed is reported, and left: no save fails for it.
    """
    if not run.checkpoints.is_dir():
        run.checkpoints.mkdir(parents=True)
        fsync(run.path)
    for path in run.checkpoints.iterdir():
        if path.name.startswith((WRITING, REMOVING)):
            _delete_or_tell(path)
    # A unique name: network file systems cache names, so another host could resolve a reused one to the checkpoint
    # that the last was renamed to, and write into it.
    beside = run.checkpoints / f"{WRITING}{uuid.uuid4().hex}"
    beside.mkdir()
    return beside


def commit(run: RunFolder, beside: Path, manifest: Manifest) -> Path:
    """Turn the folder that all ranks have written into a checkpoint. Returns its final path.

    A damaged checkpoint of that name is replaced; an intact one is kept, since it holds the same state. If anything
    fails before the rename, raises OSError, removes the folder and leaves the intact checkpoints as they were.
    """
    final = run.checkpoints / folder_name(manifest.images_seen)
    try:
        _check_sizes(beside, manifest)
        content = to_json(manifest, indent=1)
        write_atomically(beside / MANIFEST, content)
        write_atomically(beside / MANIFEST_HASH, manifest_hash(content))
        fsync(beside)
        if final.exists() and find_damage(final) is None:
            _delete_or_tell(beside)
            return final
        replaced = _set_aside(final) if final.exists() else None
        beside.rename(final)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync(run.checkpoints)
    if replaced:
        _delete_or_tell(replaced)
    return final


def prune(run: RunFolder, keep: int, newest: Path) -> list[Path]:
    """Set all committed checkpoints aside but the newest `keep` and the milestones. Returns what is to be removed.

    newest: the one committed last. Newer ones were damaged when the run resumed without them: they are kept for the
    user to inspect, and do not count.
    """
    older = [path for path in committed(run) if path.name <= newest.name]
    return [_set_aside(path) for path in older[:-keep] if not _may_be_milestone(path)]


def remove(set_aside: Iterable[Path]) -> None:
    """Remove the checkpoints that `prune` set aside. Raises OSError; `begin` then removes the rest."""
    for path in set_aside:
        _delete(path)


def _check_sizes(beside: Path, manifest: Manifest) -> None:
    for name, record in manifest.files.items():
        if (beside / name).stat().st_size != record.size_bytes:
            raise OSError(errno.EIO, "has another size than was written", str(beside / name))


def _may_be_milestone(checkpoint: Path) -> bool:
    """True also if the manifest cannot be read at the moment or is of another version; False for garbage."""
    try:
        content = parse_json((checkpoint / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    except OSError:
        return True
    return isinstance(content, dict) and content.get("snapshot_epoch") is not None


def _set_aside(checkpoint: Path) -> Path:
    """Rename a committed checkpoint so that it no longer counts: a kill cannot leave half of one."""
    aside = checkpoint.with_name(REMOVING + checkpoint.name)
    if aside.exists():  # what could not be removed of an earlier one
        aside = checkpoint.with_name(REMOVING + uuid.uuid4().hex)
    checkpoint.rename(aside)
    fsync(checkpoint.parent)
    return aside


def _delete_or_tell(path: Path) -> None:
    try:
        _delete(path)
    except OSError as error:
        print(f"{path} could not be removed ({error.strerror}); it is not needed: remove it by hand", file=sys.stderr)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
