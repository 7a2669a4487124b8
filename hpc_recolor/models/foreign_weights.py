"""Reads weights that others trained, from local files. Nothing is downloaded, and no file is unpickled."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpc_recolor.runtime.errors import UserError


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from a .pth file that contains only tensors.

    key: the option or config field that named the file. Raises UserError if it is missing or contains anything else.
    """
    if not file.is_file():
        raise UserError(f"{key}={file}", "no such file", "name a file with the weights; they are not downloaded")
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else _read_pth(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{key}={file}", f"cannot be read ({error})", "download it again") from None
    except Exception:  # PyTorch raises many types for files that contain other objects
        raise UserError(
            f"{key}={file}", "contains objects other than tensors", "name a .pth or .safetensors file of weights"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{key}={file}", "contains no state dict", "name a file that maps names to weights")
    return weights


def _read_pth(file: Path) -> Any:
    """Read by torch.hub, which finds the file in its cache and so downloads nothing; restricted to tensors."""
    with TemporaryDirectory() as folder:
        Path(folder, "weights.pth").symlink_to(file.resolve())
        return torch.hub.load_state_dict_from_url(
            "file:///weights.pth", model_dir=folder, map_location="cpu", weights_only=True
        )
