"""Evaluation by command: the same numbers on any number of ranks, and one line for what cannot be measured."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Command, CommandIn, changed, contents, error_line, paint_photo
from tests.support.commands import environment
from tests.support.fork_server import ForkServer

RUN = "runs/train"
TEST = 37  # five batches, the last of 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, command_in: CommandIn) -> Path:
    """A folder with `shards`, of 32 px, and a run that has learned from them for 2 epochs of 8."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "photos").mkdir()
    for number in range(8 + 3 + TEST):
        paint_photo(number).save(folder / "photos" / f"{number:02d}.png")
    command = command_in(folder)
    done = command("prepare", "photos", "--out", "shards", "--size", 32, "--val", 3, "--test", TEST)
    assert done.returncode == 0, done.stderr
    model = {"model.color": "rgb", "model.width": 2, "data.shards": "shards", "train.epochs": 2}
    done = command("train", *changed(TINY, **model), "--train.snapshots", 1, "--tracking.tensorboard=false")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` in the folder where commands run."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


def results(run: Path) -> dict[str, Any]:
    """What lies there: JSON read, but for the versions, since a commit may be made meanwhile; all else as bytes."""
    found: dict[str, Any] = contents(run / "evaluations")
    for name in (name for name in found if name.endswith(".json")):
        found[name] = json.loads(found[name])
        assert found[name]["protocol"].pop("versions").keys() > {"hpc_recolor", "torch", "torchmetrics"}
    return found


def test_an_export_is_measured_as_its_run_is(command: Command, here: Path) -> None:
    assert command("checkpoint", "export", RUN, "--out", "handed-on.safetensors").returncode == 0
    for source in (RUN, "handed-on.safetensors"):
        done = command("evaluate", source, "--data", "photos", "--vividness", 1, 2)
        assert done.returncode == 0, done.stderr
    (of_run,) = (here / RUN / "evaluations" / "photos").glob("*.json")
    (of_file,) = (here / "runs" / "handed-on" / "evaluations" / "photos").glob("*.json")
    one, other = (json.loads(file.read_text()) for file in (of_run, of_file))
    assert one["rows"] == other["rows"]
    assert one["front"] == other["front"]
    assert other["protocol"]["images_seen"] == one["protocol"]["images_seen"]


def test_any_number_of_ranks_writes_the_same_digits_and_pixels(command: Command, here: Path) -> None:
    found = {}
    for ranks in (1, 2, 4):
        shutil.rmtree(here / RUN / "evaluations", ignore_errors=True)
        flags = ("--checkpoint", 1, 2, "--pictures", 1, "--device", "cpu")
        done = command("evaluate", RUN, *flags, ranks=ranks, fresh=ranks == 1)
        assert done.returncode == 0, done.stderr
        assert "CIEDE2000" in done.stdout and "gray copy" in done.stdout
        found[ranks] = results(here / RUN)
    assert {"test/epoch-0001.json", "test/epoch-0002.json"} <= set(found[1])
    assert sum(name.startswith("test/epoch-0002/") for name in found[1]) == TEST
    assert found[1]["test/epoch-0002.json"]["protocol"]["images"] == TEST
    assert found[1] == found[2] == found[4]

    again = command("evaluate", RUN, "--checkpoint", 1, 2, "--pictures", 1)
    assert again.stdout.count("is there already") == 2
    assert results(here / RUN) == found[1]


def remove_checkpoints(here: Path) -> None:
    shutil.rmtree(here / RUN / "checkpoints")


def one_photo(here: Path) -> None:
    (here / "one").mkdir()
    paint_photo(1).save(here / "one" / "photo.png")


def nothing(here: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "flags", "expected"),
    [
        (nothing, ["runs/none"], ["runs/none", "not a run folder"]),
        (remove_checkpoints, [RUN], [RUN, "no checkpoint"]),
        (nothing, [RUN, "--checkpoint", "5"], ["checkpoint=5", "of 1, 2"]),
        (one_photo, [RUN, "--data", "one"], ["data=one", "a test set needs at least two images"]),
        (nothing, [RUN, "--pictures", "-1"], ["pictures", "0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__name__,
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_written(
    command: Command, here: Path, harm: Callable[[Path], None], flags: list[str], expected: list[str]
) -> None:
    harm(here)
    before = contents(here / "runs")
    line = error_line(command("evaluate", *flags))
    assert all(part in line for part in expected), line
    assert contents(here / "runs") == before


def test_ctrl_c_leaves_nothing_that_looks_whole(command: Command, here: Path, fork_server: ForkServer) -> None:
    run, flags = here / RUN, (RUN, "--device", "cpu")
    with (
        (here / "stderr").open("w") as stderr,
        fork_server.start("hpc_recolor.evaluate", flags, here, environment(), stderr=stderr) as measuring,
    ):
        deadline_s = time.monotonic() + 120
        while not list(run.glob("evaluations/*/*/*.png")) and measuring.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        measuring.send_signal(signal.SIGINT)
        code = measuring.wait(60)
    printed = (here / "stderr").read_text()
    assert code == 130, printed
    assert printed.splitlines()[-1].startswith("interrupted") and "Traceback" not in printed
    assert list(run.glob("evaluations/*/*.json")) == []
    assert command("evaluate", *flags).returncode == 0
    assert len(list(run.glob("evaluations/*/*.json"))) == 1
