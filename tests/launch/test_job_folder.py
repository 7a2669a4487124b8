"""Folders whose files are executed: private to this user, or refused."""

import json
import os
from pathlib import Path

import pytest

from hpc_recolor.launch.job_folder import (
    Event,
    JobFolder,
    Submission,
    append_event,
    read_ends,
    read_history,
    read_submission,
    runs_of_sweep,
    write_submission,
)
from hpc_recolor.run_folder.time_account import JobEnd
from hpc_recolor.runtime.errors import UserError

START = Event(kind="start", job="7", restart=0, time="2026-01-01T00:00:00+00:00", ranks=1, nodes=("n1",))
SUBMISSION = Submission(
    cluster="slurm",
    job="7",
    ranks=1,
    nodes=1,
    logs=Path("/runs/cars/job"),
    partition=None,
    time=None,
    submitted="2026-01-01T00:00:00+00:00",
    code="0123456789abcdef",
    commit=None,
    command="python -m hpc_recolor.submit",
)


def test_a_job_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "run" / "job")
    folder.make()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.path.chmod(0o755)
    folder.make()  # as created under another umask
    folder.check()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_folder_that_others_may_enter_is_refused(mode: int, tmp_path: Path) -> None:
    JobFolder(tmp_path / "job").make()
    (tmp_path / "job").chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:o}"):
        JobFolder(tmp_path / "job").check()


def test_links_files_and_missing_folders_are_refused(tmp_path: Path) -> None:
    JobFolder(tmp_path / "real").make()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o700)
    for name in ("link", "file", "nothing"):
        with pytest.raises(UserError):
            JobFolder(tmp_path / name).check()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    JobFolder(tmp_path / "job").make()
    os.chown(tmp_path / "job", 65534, 65534)
    with pytest.raises(UserError, match="belongs to user 65534"):
        JobFolder(tmp_path / "job").make()
    assert (tmp_path / "job").stat().st_uid == 65534


@pytest.mark.parametrize(
    "damage",
    [{"job": "../../others/7"}, {"job": "--all"}, {"job": "7" * 300}, {"job": "7_1", "logs": "/" + "n" * 300}],
    ids=["a path", "an option", "too long", "logs nowhere"],
)
def test_a_job_that_can_be_neither_a_jobs_number_nor_a_file_name_is_refused(
    damage: dict[str, str], tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    folder.submission.write_text(json.dumps(SUBMISSION.model_dump(mode="json") | damage))
    with pytest.raises(UserError, match=r"submission.json: cannot be read .*; submit the run again"):
        read_submission(folder)


def test_a_row_of_history_that_was_truncated_by_a_kill_is_left_out(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    assert read_history(folder) == []
    append_event(folder, START)
    with folder.history.open("ab") as file:
        file.write(b'{"kind": "end", "jo\xff')
    assert read_history(folder) == [START]


def test_a_row_of_history_that_is_nested_too_deeply_is_left_out(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    folder.history.write_text("[" * 10_000 + "\n")
    append_event(folder, START)
    assert read_history(folder) == [START]


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", "[" * 10_000, "\udcff"])
def test_a_damaged_list_of_a_sweeps_runs_is_refused_by_name(content: str, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    folder.tasks.write_bytes(os.fsencode(content))
    with pytest.raises(UserError, match=r"tasks\.json: is not a list of run folders"):
        runs_of_sweep(folder)


def test_a_truncated_row_does_not_damage_the_next_row(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    append_event(folder, START)
    folder.history.write_bytes(folder.history.read_bytes() + b'{"kind": "end", "jo')
    append_event(folder, START.model_copy(update={"restart": 1}))
    assert [event.restart for event in read_history(folder)] == [0, 1]


def test_a_job_folder_is_private_even_where_the_setgid_bit_is_inherited(tmp_path: Path) -> None:
    """As in the project folders of many clusters."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project").chmod(0o2775)
    folder = JobFolder(tmp_path / "project" / "run" / "job")
    folder.make()
    assert folder.path.stat().st_mode & 0o7777 == 0o700


def test_a_file_or_a_link_in_the_way_is_reported_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "loose").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "loose"):
        with pytest.raises(UserError):
            JobFolder(tmp_path / name).make()
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "nothing").exists()


def test_nothing_is_read_from_a_folder_that_others_may_write(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    write_submission(folder, SUBMISSION)
    assert read_submission(folder) == SUBMISSION.model_copy(update={"logs": folder.path})
    folder.path.chmod(0o777)
    with pytest.raises(UserError, match="its files are executed"):
        read_submission(folder)


@pytest.mark.parametrize("content", ["", "{", '{"job": "7"}', "[]"])
def test_a_damaged_submission_is_reported_with_its_fix(content: str, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.make()
    folder.submission.write_text(content)
    with pytest.raises(UserError, match="submit the run again"):
        read_submission(folder)


def test_ends_of_scripts_are_those_of_the_history_in_order_of_time(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    history = [START, START.model_copy(update={"restart": 1})]
    assert read_ends(folder, history) == []
    folder.ended.write_text(
        "7 1 1800000200.5\n7_1 0 1800000300.0\n7 0 1800000100.25\n7 0 %s.%N\n8 0 1800000400.0\n7 1 18"
    )
    assert read_ends(folder, history) == [JobEnd(1800000100.25, "7 0"), JobEnd(1800000200.5, "7 1")]
