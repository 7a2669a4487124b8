"""A damaged metrics.jsonl is refused by its line, and never rewritten."""

from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.run_folder.metrics_log import append_metrics, read_metrics, rewind_metrics
from hpc_recolor.runtime.errors import UserError


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"kind": "tr', "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"[1]", "a list, not a mapping"),
        (b'{"images_seen": 4}', "does not say of which kind it is"),
    ],
)
def test_a_broken_row_is_named(line: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    content = b'{"kind": "start"}\n' + line + b'\n{"kind": "train"}\n'
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"metrics.jsonl line 2: {problem}"):
        read_metrics(file)
    with pytest.raises(UserError, match=f"metrics.jsonl line 2: {problem}"):
        rewind_metrics(file, 4)
    assert file.read_bytes() == content


def test_rows_after_the_checkpoint_are_removed_and_those_that_do_not_say_when_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows: list[dict[str, Any]] = [
        {"kind": "train", "images_seen": 4},
        {"kind": "train", "images_seen": 8},
        {"kind": "note"},
    ]
    for row in rows:
        append_metrics(file, row)
    assert rewind_metrics(file, 4) == [rows[0], rows[2]] == read_metrics(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read \(No such file"):
        read_metrics(tmp_path / "metrics.jsonl")
