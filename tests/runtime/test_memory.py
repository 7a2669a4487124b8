"""How much memory a process may still take."""

from pathlib import Path

import pytest

from hpc_recolor.runtime import process
from hpc_recolor.runtime.process import group_memory_bytes, memory_bytes

GIB = 2**30


def control_group(folder: Path, **files: object) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


@pytest.fixture
def groups(tmp_path: Path) -> dict[str, Path]:
    stat = f"anon 1\ninactive_file {GIB}\ntotal_inactive_file {2 * GIB}"
    old = {"memory__limit_in_bytes": 8 * GIB, "memory__usage_in_bytes": 5 * GIB}
    return {
        "version 2": control_group(tmp_path / "2", memory__max=8 * GIB, memory__current=5 * GIB, memory__stat=stat),
        "version 1": control_group(tmp_path / "1", **old, memory__stat=stat),
        "no limit": control_group(tmp_path / "3", memory__max="max", memory__current=5 * GIB, memory__stat=stat),
        "other controllers": control_group(tmp_path / "4"),
        "missing": tmp_path / "5",
    }


@pytest.mark.parametrize(
    ("name", "limit_gib", "used_gib"),
    [
        ("version 2", 8, 4),
        ("version 1", 8, 3),
        ("no limit", None, 0),
        ("other controllers", None, 0),
        ("missing", None, 0),
    ],
)
def test_a_control_group_of_either_version_has_a_limit_or_none(
    groups: dict[str, Path], name: str, limit_gib: int | None, used_gib: int
) -> None:
    limit, used = group_memory_bytes(groups[name])
    assert used == used_gib * GIB
    assert limit == limit_gib * GIB if limit_gib else limit > 2**60


def test_the_narrowest_group_limits_what_is_available(
    groups: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_memory_groups", lambda: [])
    available, total = memory_bytes()
    stat = "inactive_file 0"
    narrow = control_group(tmp_path / "6", memory__max=5000, memory__current=4000, memory__stat=stat)
    monkeypatch.setattr(process, "_memory_groups", lambda: [groups["no limit"], narrow, groups["missing"]])
    assert memory_bytes() == (1000, 5000)
    monkeypatch.setattr(process, "_memory_groups", lambda: [groups["missing"], groups["no limit"]])
    assert memory_bytes()[1] == total
    assert available > 0


def test_the_groups_of_this_process_are_found() -> None:
    groups = list(process._memory_groups())
    assert all(group.is_relative_to("/sys/fs/cgroup") for group in groups)
    assert 0 < memory_bytes()[0] <= memory_bytes()[1]
