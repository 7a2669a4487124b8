"""A prepared data set on disk: shards, an index and names for each split, and the manifest that makes it one.

    manifest.json       written last; a folder without it is not a data set
    train-00000.raw     pixels of all samples, concatenated: uint8 (samples, size, size, 3), no header
    train-00000.jpeg    instead of it: JPEG files, concatenated
    train-index.npy     int64 (samples, 3): shard, offset [bytes], length [bytes] of each sample
    train-names.jsonl   the photograph that each sample was made from, one JSON string per line

The same for val and test, if they have samples.
"""

import io
import itertools
import json
import tokenize
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from hpc_recolor.config import FitName, Section
from hpc_recolor.data.inputs import check_shards_folder
from hpc_recolor.data.samples import SampleKind
from hpc_recolor.run_folder.files import FileRecord, file_damage
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.json_text import parse_json

MANIFEST = "manifest.json"
Split = Literal["val", "test", "train"]
SPLITS: tuple[Split, ...] = ("val", "test", "train")  # in the order they are filled
ShardFormat = Literal["raw", "jpeg"]

# The names of a data set's files: a manifest cannot name others elsewhere.
SetFileName = Annotated[str, Field(pattern=r"^(train|val|test)-(\d+\.(raw|jpeg)|index\.npy|names\.jsonl)$")]
# What numpy raises for a damaged header, beside ValueError.
INDEX_ERRORS = (ValueError, OSError, SyntaxError, OverflowError, TypeError, tokenize.TokenError)

COPY_AGAIN = "copy that file again, or remove the folder and prepare it again"  # the fix of damaged files


class PrepareOptions(Section):
    """The options of `prepare` that decide a data set's bytes, together with the photographs.

    size: side of the samples [pixels]. limit: most samples to train on; None keeps all. val, test: samples of those
    splits. seed: with the photographs' names, decides their order. min_side [pixels] and min_colorfulness [levels]:
    photographs below are left out.
    """

    size: int = Field(128, ge=32, le=4096)
    fit: FitName = "stretch"
    format: ShardFormat = "raw"
    limit: int | None = Field(None, ge=1)
    val: int = Field(0, ge=0)
    test: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    min_side: int = Field(32, ge=1)
    min_colorfulness: float = Field(3.0, ge=0)


class LeftOut(BaseModel):
    """A photograph that was left out of the data set, and why."""

    name: str
    reason: str


class SetManifest(BaseModel):
    """What a data set consists of. found = sum of splits + left_out + beyond_limit.

    found: photographs in the source; beyond_limit: those not decoded, since `limit` was reached; other_files: files
    that are not photographs; source: SHA-256 of the names and sizes found.
    """

    format: Literal[1] = 1
    options: PrepareOptions
    source: str
    found: int
    kept: int
    beyond_limit: int
    other_files: int
    splits: dict[Split, int]
    left_out_by_reason: dict[str, int]
    files: dict[SetFileName, FileRecord]
    versions: dict[str, str]
    left_out: list[LeftOut]


def shard_name(split: str, number: int, shard_format: ShardFormat) -> str:
    """Name of the file with a split's shard."""
    return f"{split}-{number:05d}.{shard_format}"


def pixel_bytes(size: int) -> int:
    """Bytes of a sample in a raw shard."""
    return size * size * 3


def index_bytes(rows: Iterable[tuple[int, int, int]]) -> bytes:
    """Content of an index: rows of (shard, offset, length)."""
    content = io.BytesIO()
    np.save(content, np.array(list(rows), np.int64).reshape(-1, 3))
    return content.getvalue()


def names_bytes(names: Iterable[str]) -> bytes:
    """Content of a list of names. Bytes that are not UTF-8 are read back as os.fsdecode returned them."""
    return "".join(json.dumps(name) + "\n" for name in names).encode()


def read_set(folder: Path, key: str) -> SetManifest:
    """The manifest of a data set. Checks that all files exist in their sizes and that the indexes fit the shards.

    key: the flag or config key that named the folder, for messages. Raises UserError if the folder is not a data set,
    or a file is missing or damaged. Contents of shards are not read; see `verify`.
    """
    subject = f"{key}={folder}"
    check_shards_folder(folder, key)
    try:
        content = parse_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UserError(
            subject,
            f"has no {MANIFEST}, so it is not a complete prepared data set",
            "prepare it, or run the same `prepare` command again to finish it",
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(subject, f"{MANIFEST} cannot be read ({error})", COPY_AGAIN) from None
    written_as = content.get("format") if isinstance(content, dict) else None
    if written_as != 1:
        raise UserError(
            subject, f"{MANIFEST} has format {written_as!r}, this version reads 1", "prepare the photographs again"
        )
    try:
        manifest = SetManifest.model_validate(content)
    except ValidationError as error:
        broken = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(subject, f"{MANIFEST} is damaged at {broken}", COPY_AGAIN) from None
    for name, expected in manifest.files.items():
        _check_size(folder / name, expected, subject)
    if not manifest.splits.get("train"):
        raise UserError(subject, f"{MANIFEST} lists no samples to train on", COPY_AGAIN)
    for split in manifest.splits:
        verify(folder, [f"{split}-index.npy"], manifest, key)
        _check_bounds(folder, split, manifest, subject)
    return manifest


def verify(folder: Path, names: Iterable[str], manifest: SetManifest, key: str) -> None:
    """Raise UserError unless these files exist with the hashes in the manifest. key: as for `read_set`."""
    for name in names:
        if name not in manifest.files:
            raise UserError(f"{key}={folder}", f"{MANIFEST} does not list {name}", COPY_AGAIN)
        damage = file_damage(folder / name, manifest.files[name])
        if damage:
            raise UserError(f"{key}={folder}", damage, COPY_AGAIN)


def _check_size(file: Path, expected: FileRecord, subject: str) -> None:
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise UserError(subject, f"{file.name} cannot be found ({error.strerror})", COPY_AGAIN) from None
    if size_bytes != expected.size_bytes:
        raise UserError(subject, f"{file.name} has {size_bytes} bytes, expected {expected.size_bytes}", COPY_AGAIN)


def _check_bounds(folder: Path, split: Split, manifest: SetManifest, subject: str) -> None:
    file, options = folder / f"{split}-index.npy", manifest.options
    index = _read_index(file, subject)
    shard, offset, length = index.T
    names = list(_listed_shards(split, manifest))
    if len(index) and shard.max() >= len(names):
        missing = shard_name(split, len(names), options.format)
        raise UserError(subject, f"{file.name} names {missing}, which {MANIFEST} does not list", COPY_AGAIN)
    ends = np.array([manifest.files[name].size_bytes for name in names], np.int64)
    # Without a sum, which might overflow.
    bounds_fit = (index >= 0).all() and (length <= ends[shard]).all() and (offset <= ends[shard] - length).all()
    lengths_fit = (length > 0).all() and (options.format == "jpeg" or (length == pixel_bytes(options.size)).all())
    if len(index) != manifest.splits[split] or not lengths_fit or not bounds_fit:
        raise UserError(subject, f"{file.name} does not fit the shards", COPY_AGAIN)


def _read_index(file: Path, subject: str) -> NDArray[np.int64]:
    """The rows of an index. Mapped, not read: a header may promise more than there is memory for."""
    try:
        index = np.lib.format.open_memmap(file, mode="r")
    except INDEX_ERRORS as error:
        raise UserError(subject, f"{file.name} is not an index ({error})", COPY_AGAIN) from None
    if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 3:
        found = f"{index.dtype} {index.shape}"
        raise UserError(subject, f"{file.name} is not an index ({found} in place of int64 (n, 3))", COPY_AGAIN)
    return np.asarray(index)


def _listed_shards(split: Split, manifest: SetManifest) -> Iterator[str]:
    for number in itertools.count():
        name = shard_name(split, number, manifest.options.format)
        if name not in manifest.files:
            return
        yield name


class ShardSamples:
    """The samples of one split, mapped into memory. A copy in another process maps them again."""

    def __init__(self, folder: Path, split: Split, options: PrepareOptions) -> None:
        self.folder, self.split, self.options = folder, split, options
        self._index = np.load(folder / f"{split}-index.npy")
        self._maps: dict[int, NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSamples, (self.folder, self.split, self.options)

    @property
    def kind(self) -> SampleKind:
        """raw or jpeg."""
        return self.options.format

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int) -> NDArray[np.uint8]:
        """A view of the mapped shard: RGB pixels (size, size, 3) if raw, else bytes of a JPEG file (n,)."""
        shard, offset, length = self._index[number].tolist()
        if shard not in self._maps:
            file = self.folder / shard_name(self.split, shard, self.options.format)
            self._maps[shard] = np.asarray(np.memmap(file, np.uint8, mode="r"))  # slices of a memmap itself are slow
        content = self._maps[shard][offset : offset + length]
        return content.reshape(self.options.size, self.options.size, 3) if self.kind == "raw" else content

    def name(self, number: int) -> str:
        """The photograph that the sample was made from."""
        return self._names[number]

    @cached_property
    def _names(self) -> list[str]:
        lines = (self.folder / f"{self.split}-names.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]
