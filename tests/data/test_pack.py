"""Two processes, other versions and read-only folders; what commands can show is in tests/commands/test_prepare.py."""

import json
from pathlib import Path

import pytest

from hpc_recolor.data import pack
from hpc_recolor.data.journal import JOURNAL, Journal, JournalHeader
from hpc_recolor.data.shards import PrepareOptions
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import silent
from tests.conftest import contents
from tests.support.prepared_sets import SIZE, Prepare

HEADER = JournalHeader(options=PrepareOptions(size=SIZE), source="0", versions={"pillow": "1"})


def test_data_set_that_another_process_has_just_finished_is_left_alone(prepared: Prepare) -> None:
    folder = prepared("raw")
    before = contents(folder)
    with pytest.raises(UserError, match="another process has just prepared it"):
        Journal(folder, HEADER)
    (folder / JOURNAL).unlink(missing_ok=True)
    assert contents(folder) == before


def test_one_process_at_a_time_prepares_a_data_set(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER), pytest.raises(UserError, match="another process prepares this data set"):
        Journal(tmp_path, HEADER)


def test_data_set_that_was_begun_with_other_versions_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER):
        pass
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"was begun with .*'1'.*, installed are .*'2'"):
        Journal(tmp_path, HEADER.model_copy(update={"versions": {"pillow": "2"}}))
    assert contents(tmp_path) == before


def test_name_that_no_file_system_takes_is_refused(painted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        pack.prepare([painted], tmp_path / ("x" * 300), PrepareOptions(size=SIZE), threads=1, progress=silent)


def test_progress_with_a_limit_counts_samples(painted: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    options = PrepareOptions(size=SIZE, val=2, limit=5)
    pack.prepare([painted], tmp_path / "set", options, threads=1, progress=lambda *done: calls.append(done))
    assert calls[0] == (0, 7)
    assert calls[-1] == (7, 7)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["found"] == manifest["kept"] + len(manifest["left_out"]) + manifest["beyond_limit"]
