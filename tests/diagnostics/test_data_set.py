"""Every problem of a data set or of photographs is found and named, with its fix."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpc_recolor.data.shards import (
    PrepareOptions,
    SetManifest,
    ShardFormat,
    Split,
    index_bytes,
    names_bytes,
    shard_name,
)
from hpc_recolor.diagnostics.data_set import examine
from hpc_recolor.diagnostics.findings import Finding
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.runtime.errors import UserError
from tests.conftest import paint_photo
from tests.data.test_shards import edit_manifest, flip_a_bit
from tests.support.bad_photos import encoded, write_bad_photos, write_duplicates
from tests.support.prepared_sets import SIZE, Prepare


def find(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject == subject)


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity in ("warning", "error")]


def build_set(folder: Path, shard_format: ShardFormat, splits: dict[Split, list[bytes]]) -> Path:
    """A data set with these samples in it, which `prepare` would not have written."""
    folder.mkdir()
    for split, samples in splits.items():
        ends = np.cumsum([len(sample) for sample in samples]).tolist()
        rows = [(0, end - len(sample), len(sample)) for end, sample in zip(ends, samples, strict=True)]
        (folder / shard_name(split, 0, shard_format)).write_bytes(b"".join(samples))
        (folder / f"{split}-index.npy").write_bytes(index_bytes(rows))
        (folder / f"{split}-names.jsonl").write_bytes(names_bytes(f"{split}{number}" for number in range(len(samples))))
    count = sum(map(len, splits.values()))
    manifest = SetManifest(
        options=PrepareOptions(size=SIZE, format=shard_format),
        source="",
        found=count,
        kept=count,
        beyond_limit=0,
        other_files=0,
        splits={split: len(samples) for split, samples in splits.items()},
        left_out_by_reason={},
        files={file.name: record_of(file) for file in folder.iterdir()},
        versions={},
        left_out=[],
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.model_dump()))
    return folder


def raw(number: int) -> bytes:
    return paint_photo(number, SIZE, SIZE).tobytes()


@pytest.mark.parametrize("shard_format", ["raw", "jpeg"])
def test_nothing_is_wrong_with_a_whole_set(prepared: Prepare, shard_format: ShardFormat) -> None:
    findings = examine(prepared(shard_format))
    assert {finding.severity for finding in findings} == {"ok"}
    assert "val 3, train 12" in find(findings, "data set").message


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train-00000.raw", Path.unlink),
        ("train-00000.raw", lambda file: file.write_bytes(b"short")),
        ("train-00000.raw", flip_a_bit),
        ("train-names.jsonl", flip_a_bit),
        ("train-names.jsonl", Path.unlink),
        ("val-index.npy", flip_a_bit),
        ("train-index.npy", lambda file: file.write_bytes((file.parent / "val-index.npy").read_bytes())),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda file: file.write_text("{")),
        ("manifest.json", lambda file: file.write_text("[1]")),
        ("manifest.json", lambda file: edit_manifest(file.parent, lambda content: content.update(format=2))),
        ("manifest.json", lambda file: edit_manifest(file.parent, lambda content: content.pop("splits"))),
    ],
)
def test_damage_is_named_with_file_and_fix(prepared: Prepare, file: str, damage: Callable[[Path], object]) -> None:
    folder = prepared("raw")
    damage(folder / file)
    (found,) = bad(examine(folder))
    assert found.severity == "error"
    assert found.message.startswith((file, f"has no {file}"))
    assert "prepare" in found.fix


def test_every_damaged_file_is_named(prepared: Prepare) -> None:
    folder = prepared("raw")
    flip_a_bit(folder / "train-00000.raw")
    (folder / "val-00000.raw").unlink()
    first, second = bad(examine(folder))
    assert first.message == "train-00000.raw differs from what was written (XXH3-128)"
    assert second.message == "val-00000.raw is missing"


def test_index_of_other_shards_is_found_even_if_the_manifest_agrees(tmp_path: Path) -> None:
    folder = build_set(tmp_path / "set", "raw", {"train": [raw(0)]})
    (folder / "train-index.npy").write_bytes(index_bytes([(0, 1, SIZE * SIZE * 3)]))
    record = record_of(folder / "train-index.npy").model_dump()
    edit_manifest(folder, lambda content: content["files"].update({"train-index.npy": record}))  # type: ignore[attr-defined]
    (found,) = bad(examine(folder))
    assert found.message == "train-index.npy does not fit the shards"


def test_unfinished_set_asks_for_the_same_command(prepared: Prepare) -> None:
    folder = prepared("raw")
    (folder / "manifest.json").unlink()
    (folder / "progress.jsonl").write_text("the header\na shard\n")
    (found,) = examine(folder)
    assert (found.severity, found.message) == ("warning", "unfinished: shards written so far: 1")
    assert "same prepare command" in found.fix


def test_samples_in_two_splits_are_an_error(tmp_path: Path) -> None:
    folder = build_set(tmp_path / "set", "raw", {"val": [raw(0), raw(1)], "train": [raw(2), raw(1), raw(2)]})
    (found,) = bad(examine(folder))
    assert (found.subject, found.severity) == ("duplicates", "error")
    assert found.message == "1 in two splits: val1 in val is train1 in train"
    assert "prepare" in found.fix


def test_samples_twice_in_a_split_are_a_warning(tmp_path: Path) -> None:
    (found,) = bad(examine(build_set(tmp_path / "set", "raw", {"train": [raw(2), raw(1), raw(2)]})))
    assert (found.severity, found.message) == ("warning", "1 of 3 (33.3 %): train2 is train0")


def test_samples_that_do_not_decode_are_named(tmp_path: Path) -> None:
    whole = [encoded(paint_photo(number, SIZE, SIZE), "JPEG") for number in range(3)]
    (found,) = bad(examine(build_set(tmp_path / "set", "jpeg", {"train": [*whole, b"no photograph"]})))
    assert (found.subject, found.severity) == ("samples", "error")
    assert found.message.startswith("1 of 4 (25.0 %) cannot be used: 1 foreign; train3 (foreign")
    assert "prepare" in found.fix


def test_gray_samples_are_counted(tmp_path: Path) -> None:
    gray = [paint_photo(number, SIZE, SIZE).convert("L").convert("RGB").tobytes() for number in range(2)]
    few = examine(build_set(tmp_path / "few", "raw", {"train": [gray[0], *map(raw, range(4))]}))
    assert not bad(few)
    assert find(few, "near-gray").message == "1 of 5 (20.0 %) with a colorfulness below 3: train0"
    (found,) = bad(examine(build_set(tmp_path / "many", "raw", {"train": [*gray, raw(0)]})))
    assert (found.subject, found.severity) == ("near-gray", "warning")
    assert "--min-colorfulness" in found.fix


def test_photographs_are_found_measured_and_compared(tmp_path: Path) -> None:
    for number, width in enumerate((31, 64, 100)):
        paint_photo(number, width, 200).save(tmp_path / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "2.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no photograph")
    findings = examine(tmp_path)
    assert not bad(findings)
    assert find(findings, "photographs").message == "4 found, and 1 other files"
    sizes = find(findings, "sizes")
    assert sizes.message.startswith(
        "shorter sides from 31 px, median 82; longest side 200 px; 1 of 4 (25.0 %) below 32"
    )
    assert find(findings, "duplicates").message.startswith("1 of 4 (25.0 %): ")


def test_bad_photographs_are_counted_by_kind(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    written = write_bad_photos(folder)
    pairs = write_duplicates(folder)
    findings = examine(folder)
    found = find(findings, "readable")
    # What cannot be used whatever the limits on size and color.
    unusable = [photo for photo in written if not photo.decodes or re.search("anim", photo.reason or "")]
    assert found.severity == "error"
    assert found.message.startswith(f"{len(unusable)} of {len(written) + 2 * len(pairs)} ")
    assert "1 empty" in found.message and "and 8 more" in found.message
    assert all(name in find(findings, "near-gray").message for name in ("bad/gray.jpg", "bad/near-gray.png"))
    assert find(findings, "duplicates").message.startswith(f"{len(pairs)} of ")


def test_a_few_unreadable_photographs_are_a_warning(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        paint_photo(number).save(folder / f"{number}.png")
    (folder / "empty.jpg").touch()
    (found,) = bad(examine(folder))
    assert (found.severity, found.message) == (
        "warning",
        "1 of 10 (10.0 %) cannot be used: 1 empty; photos/empty.jpg (empty)",
    )
    assert "prepare leaves them out" in found.fix


def test_places_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DIR=.*nowhere: no such file or folder; name "):
        examine(tmp_path / "nowhere")
    (found,) = examine(tmp_path)
    assert found.severity == "error" and found.message.startswith("no photographs in it")
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 and no more")
    (found,) = examine(tmp_path / "half.zip")
    assert found.severity == "error" and "fetch it again" in found.fix
    (found,) = examine(tmp_path / ("long" * 100))
    assert found.severity == "error" and "File name too long" in found.message
