"""Checks of the data section that need the config alone: folders exist, keys fit together. Imports no torch."""

from pathlib import Path

from hpc_recolor.config import DataConfig
from hpc_recolor.runtime.errors import UserError


def check_inputs(data: DataConfig) -> None:
    """Raise UserError unless data names photographs or shards, and all folders that it names exist. Opens no file."""
    if (data.photos is None) == (data.shards is None):
        raise UserError(
            "data.photos and data.shards",
            "both are set" if data.photos else "neither is set",
            "name a folder of photographs with --data.photos DIR, or one that `prepare` wrote with --data.shards DIR",
        )
    if data.shards and data.held_out:
        raise UserError(
            f"data.held_out={data.held_out}",
            "cannot be combined with data.shards",
            "leave it out, and hold photographs out with `prepare --val N`",
        )
    if data.shards:
        check_shards_folder(data.shards, "data.shards")
    if data.photos:
        check_photos_folder(data.photos, "data.photos")
    if data.held_out:
        check_photos_folder(data.held_out, "data.held_out")


def check_photos_folder(folder: Path, key: str) -> None:
    """Raise UserError unless the folder exists. key: the flag or config key that named it."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder}", "no such folder", "name a folder of photographs")


def check_shards_folder(folder: Path, key: str) -> None:
    """Raise UserError unless the folder exists. key: the flag or config key that named it."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder}", "no such folder", "name one that `python -m hpc_recolor.prepare` wrote")
