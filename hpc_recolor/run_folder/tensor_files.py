"""Files of named tensors: hashed and synced while written, verified, and assembled from the ranks' fragments.

safetensors only: a JSON header and raw numbers, so that reading a file cannot run code.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash
from safetensors import SafetensorError, safe_open

from hpc_recolor.run_folder.files import FileRecord
from hpc_recolor.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Small enough to be written from the cache that hashing has filled, large enough to release the GIL for both.
CHUNK_BYTES = 2**19
# After so many the disk begins with them, while the next are hashed; else it would wait for fsync.
WRITEBACK_BYTES = 2**25

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}


def write(file: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> FileRecord:
    """Write CPU tensors as a safetensors file that survives a power cut, with metadata in its header.

    The record is computed from memory while writing; the file is not read back. If a write fails, removes the file and
    raises OSError that names it.
    """
    digest, size_bytes, sent_bytes = xxhash.xxh3_128(), 0, 0
    try:
        with file.open("wb") as stream:
            for chunk in _chunks(tensors, metadata):
                digest.update(chunk)
                stream.write(chunk)
                size_bytes += len(chunk)
                if size_bytes - sent_bytes >= WRITEBACK_BYTES:
                    os.posix_fadvise(stream.fileno(), sent_bytes, size_bytes - sent_bytes, os.POSIX_FADV_DONTNEED)
                    sent_bytes = size_bytes
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        error.filename = str(file)  # a failed write does not name its file
        raise
    return FileRecord(size_bytes=size_bytes, xxh3_128=digest.hexdigest())


def format_damage(file: Path) -> str | None:
    """Why a file is not a safetensors file, or None. Reads its header; runs no code."""
    try:
        with safe_open(file, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{file.name} is not a safetensors file ({error})"


class _Fragment(NamedTuple):
    """Where elements start..end of a flattened tensor are stored."""

    start: int
    end: int
    file: Any
    key: str


class Fragments:
    """The tensors in a set of shard files, however they are divided among the files.

    A fragment's key is "network/kind/name@start": elements from `start` on of the flattened tensor, float32.
    Raises UserError if a file is not a safetensors file, or a fragment has another type or shape.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._fragments: dict[str, list[_Fragment]] = {}
        self._unsplit: dict[str, Any] = {}
        for path in files:
            self._add(path)
        for fragments in self._fragments.values():
            fragments.sort(key=lambda fragment: (fragment.start, fragment.end))

    def names(self, network: str, kind: str) -> list[str]:
        """The tensors of which there is at least one fragment, sorted."""
        prefix = f"{network}/{kind}/"
        return sorted(name.removeprefix(prefix) for name in self._fragments if name.startswith(prefix))

    def read(self, network: str, kind: str, name: str, numel: int) -> "Tensor":
        """A flattened tensor, float32 (numel). Raises UserError unless its fragments cover it exactly once."""
        fragments = self._fragments.get(f"{network}/{kind}/{name}", [])
        end = max((fragment.end for fragment in fragments), default=0)
        if end > numel:
            raise _incomplete(f"{network}/{kind}/{name}", f"has elements up to {end}, expected {numel}")
        return self.read_range(network, kind, name, 0, numel)

    def read_range(self, network: str, kind: str, name: str, start: int, numel: int) -> "Tensor":
        """Elements start..start+numel of a flattened tensor, float32 (numel). Reads no others.

        Raises UserError unless fragments cover them exactly once.
        """
        import torch

        tensor, end = f"{network}/{kind}/{name}", start + numel
        if tensor not in self._fragments:
            raise _incomplete(tensor, "is missing")
        needed = [fragment for fragment in self._fragments[tensor] if fragment.start < end and fragment.end > start]
        _check_cover(tensor, needed, start, end)
        result = torch.empty(numel)
        for fragment in needed:
            first, last = max(start, fragment.start), min(end, fragment.end)
            values = fragment.file.get_slice(fragment.key)[first - fragment.start : last - fragment.start]
            result[first - start : last - start] = values
        return result

    def averaged(self, network: str) -> "dict[str, Tensor]":
        """The network's buffers by name, averaged over the ranks."""
        prefix = f"{network}/averaged/"
        found = {key: file for key, file in self._unsplit.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): file.get_tensor(key) for key, file in found.items()}

    def _add(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            keys = file.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(str(path), f"not a safetensors file ({error})", "restore it from a copy") from None
        for key in keys:
            if "@" not in key:
                self._unsplit[key] = file
                continue
            tensor, start = key.rsplit("@", 1)
            entry = file.get_slice(key)
            if not start.isdecimal() or entry.get_dtype() != "F32" or len(entry.get_shape()) != 1:
                raise UserError(str(path), f"{key} is not a fragment of a float32 tensor", "restore it from a copy")
            fragment = _Fragment(start=int(start), end=int(start) + entry.get_shape()[0], file=file, key=key)
            self._fragments.setdefault(tensor, []).extend([fragment] if fragment.end > fragment.start else [])


def _check_cover(tensor: str, fragments: list[_Fragment], start: int, end: int) -> None:
    """Raise UserError unless these fragments, in order, cover start..end exactly once."""
    reached = min(start, fragments[0].start) if fragments else start
    for fragment in fragments:
        if fragment.start < reached:
            raise _incomplete(tensor, f"has elements from {fragment.start} on twice")
        if fragment.start > max(reached, start):
            raise _incomplete(tensor, f"lacks elements {max(reached, start)} to {fragment.start}")
        reached = fragment.end
    if reached < end:
        raise _incomplete(tensor, f"lacks elements {reached} to {end}")


def _incomplete(tensor: str, problem: str) -> UserError:
    return UserError(f"tensor {tensor} in the checkpoint's shards", problem, "use another checkpoint")


def _chunks(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None) -> Iterator[bytes | memoryview]:
    """The file's content in chunks. The widest dtypes come first, so that every tensor is aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
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
