"""`train` as users run it, on two ranks: signals, kills and failures end all ranks, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpc_recolor.runtime.exit_codes import BAD_INPUT, FAILED, STOPPED
from tests.conftest import TINY, changed
from tests.support.commands import environment, launched, start_ranks
from tests.support.fork_server import ForkServer, Process

DEADLINE_S = 240
# So many steps that a run does not end before the test has done with it, unless it says otherwise.
LONG = {
    "train.epochs": 2000,
    "train.silence_s": 6,
    "checkpoint.every_images": 40,
    "tracking.samples_every_images": 10**9,
}
FAULTS = {
    "step": "device_step.gan_step = fail",
    "save": "background_writer.write = fail",
}
# A module, so that an import of it alone plants the fault.
PLANTED = """
import os, sys, torch
from hpc_recolor import cli, train
from hpc_recolor.training import background_writer, device_step

def fail(*_):
    raise {error}("planted")

if os.environ["RANK"] == "1":
    {fault}
sys.exit(cli.run(train.app))
"""


@dataclass
class Ranks:
    """Two ranks of `train`: forks, or under a launcher, which is then the one process."""

    folder: Path
    processes: "list[Process | subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """The processes of the ranks, rank 0 first."""
        if len(self.processes) > 1:
            return [process.pid for process in self.processes]
        return launched_pids(self.folder)

    def wait(self) -> set[int]:
        """How the ranks ended, after all have, of which a launcher tells only some. Forks end without its help."""
        codes = {process.wait(DEADLINE_S) for process in self.processes}
        if len(self.processes) == 1 and codes != {0}:
            return {int(code) for code in re.findall(r"exitcode  : (-?\d+)", self.output)}
        return codes

    @property
    def have_ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error:")]


Start = Callable[..., AbstractContextManager[Ranks]]


@pytest.fixture
def start(tmp_path: Path, photos: Path, fork_server: ForkServer) -> Start:
    """`with start(**values) as ranks`: two ranks that are gone in the end. launcher: under torchrun; else forks."""

    @contextmanager
    def run(module: str = "hpc_recolor.train", launcher: bool = False, **values: object) -> Iterator[Ranks]:
        flags = changed(TINY, **{"data.photos": photos, "run.folder": tmp_path / "runs"} | LONG | values)
        ranks = Ranks(tmp_path)
        with (tmp_path / "output").open("w") as output, ExitStack() as stack:
            if launcher:
                command, env = [*launched(2), module, *flags], environment()
                ranks.processes.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=output, stderr=output))
            else:
                started = start_ranks(fork_server, tmp_path, module, flags, 2, output, output)
                ranks.processes += [stack.enter_context(process) for process in started]
            try:
                yield ranks
            finally:
                for pid in (*ranks.pids, *(process.pid for process in ranks.processes)):
                    if not ranks.have_ended:
                        end(pid)
                for process in ranks.processes:
                    process.wait()

    return run


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def launched_pids(folder: Path) -> list[int]:
    """The ranks that a launcher has started, rank 0 first, as the kernel knows them by their command."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            command = (place / "cmdline").read_bytes()
            environ = (place / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", environ)
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


def last_row(folder: Path) -> int:
    lines = (folder / "runs" / "train" / "metrics.jsonl").read_text().splitlines()
    return max(int(json.loads(line)["images_seen"]) for line in lines)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_saves_on_all_and_the_same_command_goes_on(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    with start(launcher=number == signal.SIGUSR2) as ranks:
        until(lambda: saved(tmp_path))
        os.kill(ranks.pids[1 if number == signal.SIGUSR2 else 0], number)
        codes = ranks.wait()
    stopped = re.search(r"stopped by .* after (\d+) images, which are saved", ranks.output)
    assert stopped, ranks.output
    assert saved(tmp_path)[-1] == int(stopped[1])
    assert STOPPED in codes and codes <= {STOPPED, -signal.SIGTERM}  # a launcher terminates the last to leave
    total = int(stopped[1]) + 40
    with start(**{"train.epochs": -(-total // 12)}) as ranks:
        assert ranks.wait() == {0}, ranks.output
    assert saved(tmp_path)[-1] >= total
    assert last_row(tmp_path) == saved(tmp_path)[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_is_named_and_the_run_goes_on_from_what_was_saved(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    with start(launcher=number == signal.SIGKILL) as ranks:
        until(lambda: saved(tmp_path))
        rank_1 = ranks.pids[1]
        os.kill(rank_1, number)
        started_s = time.monotonic()
        until(lambda: ranks.errors)
        assert time.monotonic() - started_s < 60
        os.kill(rank_1, signal.SIGKILL) if number == signal.SIGSTOP else None
        assert 0 not in ranks.wait()
    (line,) = ranks.errors
    assert "rank 1 on host" in line
    newest = saved(tmp_path)[-1]
    with start(**{"train.epochs": (newest + 40) // 12}) as ranks:
        assert ranks.wait() == {0}, ranks.output
    assert f"from image {newest} to" in ranks.output


@pytest.mark.parametrize(("fault", "error"), [("step", "MemoryError"), ("save", "ZeroDivisionError")])
def test_a_rank_that_fails_is_named_with_its_phase_and_all_end(
    fault: str, error: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED.format(fault=FAULTS[fault], error=error))
    with start("planted") as ranks:
        assert ranks.wait() == {FAILED}
    (line,) = ranks.errors
    assert re.search(rf"rank 1 on host \S+ .*failed while {'training' if fault == 'step' else 'saving'}", line), line
    assert f"{error}: planted" in line


def test_a_rank_out_of_gpu_memory_is_named_with_its_phase_and_what_to_change(start: Start, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED.format(fault=FAULTS["step"], error="torch.OutOfMemoryError"))
    with start("planted") as ranks:
        assert ranks.wait() == {FAILED, BAD_INPUT}
    (line,) = ranks.errors
    assert re.search(
        r"train.batch_size=4: rank 1 on host \S+ ran out of memory while training, step 0 \(planted\)", line
    )
    assert "train.accumulate" in line
