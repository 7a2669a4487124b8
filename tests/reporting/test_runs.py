"""Reading run folders: what is robust, and what is refused in one line."""

import json
from pathlib import Path

import pytest

from hpc_recolor.reporting.page import ReportOptions, write_report
from hpc_recolor.reporting.runs import read_runs
from hpc_recolor.runtime.errors import UserError
from tests.conftest import Command, error_line
from tests.reporting.conftest import LAB, MadeRun


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return MadeRun(tmp_path / "cars", LAB, images=4, kept=2).write()


def test_a_metrics_file_cut_in_its_last_line_is_read_up_to_there(made: Path) -> None:
    (run,) = read_runs([made])
    assert len(run.rows("train")) == 40
    assert run.rows("train")[-1]["images_seen"] == 2000


def test_a_broken_line_elsewhere_is_named(made: Path) -> None:
    metrics = made / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:6], '{"kind": "tra\n', *lines[6:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 7: not JSON"):
        read_runs([made])
    metrics.write_text("".join([*lines[:3], "[1]\n"]))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 4: a list, not a mapping"):
        read_runs([made])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 1, "protocol": 7}'])
def test_a_damaged_evaluation_is_named(made: Path, content: str) -> None:
    file = made / "evaluations" / "test" / "epoch-0002.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"epoch-0002\.json") as caught:
        read_runs([made])
    assert "\n" not in str(caught.value)
    assert "evaluate again" in str(caught.value)


def test_an_evaluation_without_its_file_is_unfinished_and_ignored(made: Path) -> None:
    (made / "evaluations" / "test" / "epoch-0001").mkdir()
    (run,) = read_runs([made])
    assert [one.protocol.epoch for one in run.measured("test")] == [2]


def test_keys_of_the_future_and_values_that_are_not_finite_are_no_error(made: Path) -> None:
    file = made / "evaluations" / "test" / "epoch-0002.json"
    content = json.loads(file.read_text())
    content["weather"] = content["protocol"]["weather"] = {"rain": 1}
    del content["protocol"]["epoch"]
    content["images"][0] |= {"weather": "rain", "ciede2000": float("nan")}
    file.write_text(json.dumps(content))
    (run,) = read_runs([made])
    (evaluation,) = run.measured("test")
    assert evaluation.epoch_text == "2,000 images seen"
    assert evaluation.images[0].value("ciede2000") is None
    assert evaluation.images[0].value("weather") is None
    assert evaluation.images[1].value("ciede2000") is not None


def test_averaged_weights_stand_for_the_run_where_raw_ones_were_measured_too(made: Path) -> None:
    folder = made / "evaluations" / "test"
    (folder / "epoch-0002-raw.json").write_text((folder / "epoch-0002.json").read_text())
    (run,) = read_runs([made])
    last = run.last("test")
    assert last is not None
    assert not last.raw
    assert [one.epoch_text for one in run.measured("test")] == ["epoch 2", "epoch 2, raw weights"]


def test_runs_of_one_name_get_the_folders_above_and_one_run_twice_is_one(tmp_path: Path) -> None:
    folders = [MadeRun(tmp_path / side / "cars", LAB, images=2, kept=0).write() for side in "ab"]
    runs = read_runs([*folders, folders[0]])
    assert [run.name for run in runs] == ["a/cars", "b/cars"]


def test_bad_runs_are_refused_in_one_line_and_nothing_is_written(command: Command, tmp_path: Path, made: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    untrained = MadeRun(tmp_path / "untrained", LAB, images=2, kept=0).write()
    for checkpoint in (untrained / "checkpoints").iterdir():
        checkpoint.rmdir()
    expected = {"nowhere": "no such folder", "bare": "no config.yaml", "untrained": "no checkpoint yet"}
    for run, reason in expected.items():
        assert reason in error_line(command("report", made, run, "--out", "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_options_that_cannot_be_met_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, reason in ((tmp_path / "file" / "report.html", "cannot be written"), (made, "is a folder")):
        with pytest.raises(UserError, match=f"out=.*{reason}"):
            write_report([made], out, ReportOptions())
    for options in (ReportOptions(data="val"), ReportOptions(image_data="val")):
        with pytest.raises(UserError, match="no run has an evaluation of that name; use one of test"):
            write_report([made], tmp_path / "report.html", options)
    with pytest.raises(UserError, match=r"notes=.*no-notes"):
        write_report([made], tmp_path / "report.html", ReportOptions(notes=tmp_path / "no-notes"))
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_image_is_named(made: Path, tmp_path: Path) -> None:
    file = made / "evaluations" / "test" / "epoch-0002" / "000001.png"
    file.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"000001\.png: damaged"):
        write_report([made], tmp_path / "report.html", ReportOptions())


def test_the_command_writes_the_page_without_torch_and_says_its_size(
    command: Command, tmp_path: Path, made: Path
) -> None:
    done = command("report", made, "--out", "pages/report.html", "--title", "Cars", "--images", 1, fresh=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pages/report.html (")
    assert "<title>Cars</title>" in (tmp_path / "pages" / "report.html").read_text()
