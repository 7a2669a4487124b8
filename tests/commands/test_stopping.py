"""`train` as users run it, on two ranks: signals, kills and failures end all ranks, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hpc_recolor.runtime.exit_codes import FAILED, STOPPED
from tests.conftest import ROOT, TINY, changed

DEADLINE_S = 240
# So many steps that a run does not end before the test has done with it, unless it says otherwise.
LONG = {
    "train.epochs": 2000,
    "train.silence_s": 6,
    "checkpoint.every_images": 40,
    "tracking.samples_every_images": 10**9,
}
FAULTS = {
    "step": "trainer.gan_step = fail",
    "save": "saver.write = fail",
}
SCRIPT = """
import os, sys
from hpc_recolor import cli, train
from hpc_recolor.training import saver, trainer

def fail(*_):
    raise {error}("planted")

if os.environ["RANK"] == "1":
    {fault}
sys.exit(cli.run(train.app))
"""


@contextmanager
def ranks(folder: Path, photos: Path, *program: str, **values: object) -> Iterator["subprocess.Popen[str]"]:
    """Two ranks of `train` under torchrun, in a process group of their own that is gone in the end."""
    flags = changed(TINY, **{"data.photos": photos, "run.folder": folder / "runs"} | LONG | values)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, *(program or ("-m", "hpc_recolor.train")), *flags]
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=stderr, text=True, start_new_session=True)
    try:
        yield process
    finally:
        for pid in (process.pid, *pids(folder)):
            with_kill(pid)
        process.wait()


def with_kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def pids(folder: Path) -> list[int]:
    """The processes of the ranks, rank 0 first, as the kernel knows them by their command."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            command = (place / "cmdline").read_bytes()
            environment = (place / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", environment)
        if rank and str(folder / "runs").encode() in command and b"torch.distributed.run" not in command:
            found[int(rank[1])] = int(place.name)
    return [found[rank] for rank in sorted(found)]


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[7:]) for path in (folder / "runs" / "train" / "checkpoints").glob("images-*"))


def errors(folder: Path) -> list[str]:
    return [line for line in (folder / "stderr").read_text().splitlines() if line.startswith("error:")]


def last_row(folder: Path) -> int:
    lines = (folder / "runs" / "train" / "metrics.jsonl").read_text().splitlines()
    return max(int(json.loads(line)["images_seen"]) for line in lines)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_saves_on_all_and_the_same_command_goes_on(
    number: signal.Signals, tmp_path: Path, photos: Path
) -> None:
    with ranks(tmp_path, photos) as process:
        until(lambda: saved(tmp_path))
        os.kill(pids(tmp_path)[1 if number == signal.SIGUSR2 else 0], number)
        process.wait(DEADLINE_S)
    output = (tmp_path / "stderr").read_text()
    stopped = re.search(r"stopped by .* after (\d+) images, which are saved", output)
    assert stopped, output
    assert saved(tmp_path)[-1] == int(stopped[1])
    assert f"exitcode  : {STOPPED}" in output
    total = int(stopped[1]) + 40
    with ranks(tmp_path, photos, **{"train.epochs": -(-total // 12)}) as process:
        assert process.wait(DEADLINE_S) == 0, (tmp_path / "stderr").read_text()
    assert saved(tmp_path)[-1] >= total
    assert last_row(tmp_path) == saved(tmp_path)[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_is_named_and_the_run_goes_on_from_what_was_saved(
    number: signal.Signals, tmp_path: Path, photos: Path
) -> None:
    with ranks(tmp_path, photos) as process:
        until(lambda: saved(tmp_path))
        rank_1 = pids(tmp_path)[1]
        os.kill(rank_1, number)
        started_s = time.monotonic()
        until(lambda: errors(tmp_path))
        assert time.monotonic() - started_s < 60
        os.kill(rank_1, signal.SIGKILL) if number == signal.SIGSTOP else None
        assert process.wait(DEADLINE_S) != 0
    (line,) = errors(tmp_path)
    assert "rank 1 on host" in line
    newest = saved(tmp_path)[-1]
    with ranks(tmp_path, photos, **{"train.epochs": (newest + 40) // 12}) as process:
        assert process.wait(DEADLINE_S) == 0, (tmp_path / "stderr").read_text()
    assert f"from image {newest} to" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize(("fault", "error"), [("step", "MemoryError"), ("save", "ZeroDivisionError")])
def test_a_rank_that_fails_is_named_with_its_phase_and_all_end(
    fault: str, error: str, tmp_path: Path, photos: Path
) -> None:
    program = tmp_path / "planted.py"
    program.write_text(SCRIPT.format(fault=FAULTS[fault], error=error))
    with ranks(tmp_path, photos, str(program)) as process:
        assert process.wait(DEADLINE_S) != 0
    (line,) = errors(tmp_path)
    assert re.search(rf"rank 1 on host \S+ .*failed while {'training' if fault == 'step' else 'saving'}", line), line
    assert f"{error}: planted" in line
    assert f"exitcode  : {FAILED}" in (tmp_path / "stderr").read_text()
