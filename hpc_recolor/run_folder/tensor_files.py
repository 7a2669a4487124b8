"""Files of named tensors: written hashed and safe on disk, checked, and put together again from the ranks' parts.

Only safetensors: a JSON header and raw numbers, so that reading a file can run no code.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from hpc_recolor.run_folder.files import FileRecord
from hpc_recolor.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Large enough that writing and hashing let other threads run meanwhile, small enough to need no second copy of all.
CHUNK_BYTES = 4 * 2**20

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}


def write(file: Path, tensors: "Mapping[str, Tensor]") -> FileRecord:
    """Write CPU tensors as a safetensors file and make it survive a power cut.

    The record is of what was to be written, hashed on its way and never read back. Raises OSError, with the file named
    and nothing left of it, if it cannot be written.
    """
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with file.open("wb") as stream:
            for chunk in _chunks(tensors):
                digest.update(chunk)
                stream.write(chunk)
                size_bytes += len(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        error.filename = str(file)  # a failed write does not name its file
        raise
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())


def format_damage(file: Path) -> str | None:
    """Why a file is no safetensors file, or None. Reads its header, and runs nothing."""
    try:
        with safe_open(file, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{file.name} is no safetensors file ({error})"


class _Part(NamedTuple):
    """Where elements start..end of a tensor lie."""

    start: int
    end: int
    file: Any
    key: str


class Fragments:
    """The tensors in some shard files, whichever file and however many parts they are in.

    A part's key is "network/kind/name@start": elements from `start` on of the flattened tensor, float32.
    Raises UserError if a file is no safetensors file, or a part is not of that kind.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._parts: dict[str, list[_Part]] = {}
        self._wholes: dict[str, Any] = {}
        for path in files:
            self._add(path)
        for parts in self._parts.values():
            parts.sort(key=lambda part: (part.start, part.end))

    def names(self, network: str, kind: str) -> list[str]:
        """The tensors of which there is a part."""
        prefix = f"{network}/{kind}/"
        return sorted(name.removeprefix(prefix) for name in self._parts if name.startswith(prefix))

    def read(self, network: str, kind: str, name: str, numel: int) -> "Tensor":
        """A whole tensor, flat, float32 (numel). Raises UserError unless its parts cover it exactly once."""
        parts = self._parts.get(f"{network}/{kind}/{name}", [])
        end = max((part.end for part in parts), default=0)
        if end > numel:
            raise _incomplete(f"{network}/{kind}/{name}", f"it has elements up to {end}, expected {numel}")
        return self.read_range(network, kind, name, 0, numel)

    def read_range(self, network: str, kind: str, name: str, start: int, numel: int) -> "Tensor":
        """Elements start..start+numel of a flattened tensor, float32 (numel). Reads no others.

        Raises UserError unless parts cover them exactly once.
        """
        import torch

        tensor, end = f"{network}/{kind}/{name}", start + numel
        if tensor not in self._parts:
            raise _incomplete(tensor, "it is not there")
        needed = [part for part in self._parts[tensor] if part.start < end and part.end > start]
        _check_cover(tensor, needed, start, end)
        result = torch.empty(numel)
        for part in needed:
            first, last = max(start, part.start), min(end, part.end)
            values = part.file.get_slice(part.key)[first - part.start : last - part.start]
            result[first - start : last - start] = values
        return result

    def averaged(self, network: str) -> "dict[str, Tensor]":
        """The network's buffers, averaged over the ranks, by name."""
        prefix = f"{network}/averaged/"
        found = {key: file for key, file in self._wholes.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): file.get_tensor(key) for key, file in found.items()}

    def _add(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            keys = file.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no safetensors file ({error}); bring it back from a copy") from None
        for key in keys:
            if "@" not in key:
                self._wholes[key] = file
                continue
            tensor, start = key.rsplit("@", 1)
            entry = file.get_slice(key)
            if not start.isdecimal() or entry.get_dtype() != "F32" or len(entry.get_shape()) != 1:
                raise UserError(f"{path}: {key} is no part of a float32 tensor; bring the file back from a copy")
            part = _Part(int(start), int(start) + entry.get_shape()[0], file, key)
            self._parts.setdefault(tensor, []).extend([part] if part.end > part.start else [])


def _check_cover(tensor: str, parts: list[_Part], start: int, end: int) -> None:
    """Raise UserError unless these parts, in order, cover start..end exactly once."""
    reached = min(start, parts[0].start) if parts else start
    for part in parts:
        if part.start < reached:
            raise _incomplete(tensor, f"elements from {part.start} on are there twice")
        if part.start > max(reached, start):
            raise _incomplete(tensor, f"elements {max(reached, start)} to {part.start} are missing")
        reached = part.end
    if reached < end:
        raise _incomplete(tensor, f"elements {reached} to {end} are missing")


def _incomplete(tensor: str, reason: str) -> UserError:
    return UserError(f"the checkpoint's shards do not hold {tensor} once and whole: {reason}; use another checkpoint")


def _chunks(tensors: "Mapping[str, Tensor]") -> Iterator[bytes | memoryview]:
    """The file's content, piece by piece. The widest numbers come first, so that each tensor is aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    yield len(content).to_bytes(8, "little") + content
    for _, tensor in ordered:
        data = _bytes_of(tensor)
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
