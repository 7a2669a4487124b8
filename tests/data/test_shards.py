"""A damaged data set is refused, by the name of the file."""

import io
import json
import pickle  # noqa: TID251, as torch's loader does between processes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.sets import SampleSets, collect
from hpc_recolor.data.shards import ShardSamples, read_set
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from tests.support.prepared_sets import SIZE, Prepare

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def config(folder: Path) -> Config:
    return load_config(None, {"data": {"shards": folder, "size": SIZE}})


def load(folder: Path) -> SampleSets:
    return collect(config(folder), ALONE)


def edit_manifest(folder: Path, edit: Callable[[dict[str, object]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_whole_set_is_read_by_number(prepared: Prepare) -> None:
    sets = load(prepared("raw"))
    assert (len(sets.train), len(sets.held_out)) == (12, 3)
    names = [some.name(number) for some in (sets.train, sets.held_out) for number in range(len(some))]
    assert len(set(names)) == 15
    assert sets.train.read(0).shape == (SIZE, SIZE, 3)


def test_samples_are_usable_in_another_process(prepared: Prepare) -> None:
    folder = prepared("raw")
    samples = ShardSamples(folder, "train", read_set(folder, "data.shards").options)
    samples.read(0)
    sent = pickle.dumps(samples)
    assert len(sent) < SIZE * SIZE * 3, "pixels were sent, not the folder"
    np.testing.assert_array_equal(pickle.loads(sent).read(5), samples.read(5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train-00000.raw").unlink(), "train-00000.raw cannot be found"),
        (lambda folder: (folder / "train-00000.raw").write_bytes(b"short"), "train-00000.raw has 5 bytes, expected"),
        (lambda folder: flip_a_bit(folder / "train-00000.raw"), "train-00000.raw differs from what was written"),
        (lambda folder: flip_a_bit(folder / "train-names.jsonl"), "train-names.jsonl differs from what was written"),
        (lambda folder: flip_a_bit(folder / "val-index.npy"), "val-index.npy differs from what was written"),
        (
            lambda folder: (folder / "train-index.npy").write_bytes((folder / "val-index.npy").read_bytes()),
            "train-index.npy has",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 10_000), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json has format None"),
        (lambda folder: edit_manifest(folder, lambda content: content.update(format=2)), "format 2, this version"),
        (lambda folder: edit_manifest(folder, lambda content: content.pop("splits")), "damaged at splits"),
        (lambda folder: edit_manifest(folder, lambda content: content.update(splits={})), "no samples to train on"),
    ],
)
def test_damaged_set_is_refused_by_the_name_of_the_file(
    prepared: Prepare, damage: Callable[[Path], object], message: str
) -> None:
    folder = prepared("raw")
    damage(folder)
    with pytest.raises(UserError, match=f"data.shards={folder}: ") as error:
        load(folder)
    assert message in str(error.value)
    assert "prepare" in str(error.value)


def test_index_of_other_shards_is_refused_even_if_the_manifest_agrees(prepared: Prepare, tmp_path: Path) -> None:
    folder = prepared("raw")
    rows = np.load(folder / "train-index.npy")
    rows[:, 1] += 1
    np.save(folder / "train-index.npy", rows)
    record = record_of(folder / "train-index.npy").model_dump()
    edit_manifest(folder, lambda content: content["files"].update({"train-index.npy": record}))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"train-index.npy does not fit the shards"):
        load(folder)


@pytest.mark.parametrize("name", ["../train-00000.raw", "/etc/passwd", "train-00000.raw\0", "other.raw"])
def test_a_manifest_that_names_other_files_is_refused(prepared: Prepare, name: str) -> None:
    folder = prepared("raw")
    edit_manifest(folder, lambda content: content["files"].update({name: {"size_bytes": 1, "sha256": "0"}}))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="damaged at files"):
        load(folder)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[2**62, 0, 1]], "names train-00001.jpeg, which manifest.json does not list"),
        ([[0, 2**63 - 1, 2]], "does not fit the shards"),
        ([[0, 5, -5]], "does not fit the shards"),
        ([[-1, 0, 1]], "does not fit the shards"),
        ([[0, 5, 0]], "does not fit the shards"),
        ([[0, 0]], "is not an index"),
        ([[0.0, 0.0, 1.0]], "is not an index"),
        (["a"], "is not an index"),
    ],
)
def test_an_index_that_leads_outside_its_shards_is_refused(prepared: Prepare, rows: list[Any], problem: str) -> None:
    """Even if the manifest agrees, and without a list of all the shards that it claims."""
    folder = prepared("jpeg")
    write_index(folder, index_bytes_of(np.array(rows * 12)))
    with pytest.raises(UserError, match=problem):
        load(folder)


def test_an_index_whose_header_promises_more_than_there_is_is_refused(prepared: Prepare) -> None:
    folder = prepared("raw")
    content = (folder / "train-index.npy").read_bytes()
    write_index(folder, content.replace(b"(12, 3), }         ", b"(999999999999, 3), }"))
    with pytest.raises(UserError, match="is not an index"):
        load(folder)


def index_bytes_of(rows: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, rows)
    return content.getvalue()


def write_index(folder: Path, content: bytes) -> None:
    (folder / "train-index.npy").write_bytes(content)
    record = record_of(folder / "train-index.npy").model_dump()
    edit_manifest(folder, lambda tree: tree["files"].update({"train-index.npy": record}))  # type: ignore[attr-defined]


def test_photographs_and_shards_together_are_refused(prepared: Prepare, painted: Path) -> None:
    with pytest.raises(UserError, match=r"data.photos and data.shards: both are set"):
        collect(load_config(None, {"data": {"shards": prepared("raw"), "photos": painted, "size": SIZE}}), ALONE)


def test_without_a_val_split_some_samples_are_held_out(painted: Path, tmp_path: Path) -> None:
    from hpc_recolor.data import pack
    from hpc_recolor.data.shards import PrepareOptions
    from hpc_recolor.runtime.progress import silent

    pack.prepare([painted], tmp_path / "set", PrepareOptions(size=SIZE), threads=1, progress=silent)
    sets = collect(load_config(None, {"data": {"shards": tmp_path / "set", "size": SIZE, "held_out_count": 4}}), ALONE)
    names = [[some.name(number) for number in range(len(some))] for some in (sets.train, sets.held_out)]
    assert (len(names[0]), len(names[1])) == (11, 4)
    assert not set(names[0]) & set(names[1])
