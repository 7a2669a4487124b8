"""The page as a command: where it listens, what it prints, how it ends."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpc_recolor.models.weights_package import COLORIZER
from tests.conftest import Command, contents, error_line
from tests.serving.conftest import announced
from tests.support.commands import environment
from tests.support.fork_server import ForkServer, Process
from tests.support.live import until

GRAY_PHOTO = Path(__file__).parents[2] / "docs" / "colorized.jpg"


@dataclass
class Started:
    """The command in a process of its own. out, err: files of what it prints."""

    process: Process
    out: Path
    err: Path

    def line(self, number: int) -> str:
        """A line of stdout, once it is there."""
        until(lambda: self.out.read_text().count("\n") > number or self.process.poll() is not None)
        assert self.process.poll() is None, self.err.read_text()
        return self.out.read_text().splitlines()[number]


@contextmanager
def forked(server: ForkServer, folder: Path, *arguments: object) -> Iterator[Started]:
    """The command in a folder, which it leaves as it is."""
    paths = [folder.parent / f"{folder.name}.{kind}" for kind in ("out", "err")]
    with open(paths[0], "w") as out, open(paths[1], "w") as err:
        env = environment() | {"PYTHONUNBUFFERED": "1"}
        process = server.start("hpc_recolor.serve", arguments, folder, env, out, err)
    with process:
        yield Started(process, *paths)
    assert contents(folder) == {}  # nothing of the photographs is kept


def test_it_prints_its_address_colors_photographs_and_ends_at_ctrl_c(fork_server: ForkServer, tmp_path: Path) -> None:
    with forked(fork_server, tmp_path, "--port", 0) as started:
        line = started.line(0)
        assert line.startswith("color photographs at http://127.0.0.1:") and line.endswith(" (Ctrl-C ends it)")
        address = line.split()[3]
        with urllib.request.urlopen(f"{address}/api/info", timeout=60) as answer:
            assert json.load(answer)["colorizer"] == "the one in the package"
        with urllib.request.urlopen(f"{address}/api/colorize", GRAY_PHOTO.read_bytes(), timeout=300) as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
        assert " megapixels in " in started.line(1)
        started.process.send_signal(signal.SIGINT)
        assert started.process.wait(60) == 0
        assert started.err.read_text() == "stopped\n"


def test_it_colors_with_a_file_that_was_exported(fork_server: ForkServer, tmp_path: Path) -> None:
    file = shutil.copy(COLORIZER, tmp_path / "mine.safetensors")
    (tmp_path / "here").mkdir()
    with forked(fork_server, tmp_path / "here", file, "--port", 0) as started:
        address = started.line(0).split()[3]
        with urllib.request.urlopen(f"{address}/api/info", timeout=60) as answer:
            assert json.load(answer)["colorizer"] == "mine.safetensors"
        with urllib.request.urlopen(f"{address}/api/colorize", GRAY_PHOTO.read_bytes(), timeout=300) as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"


def test_it_warns_where_others_can_reach_it(fork_server: ForkServer, tmp_path: Path) -> None:
    with forked(fork_server, tmp_path, "--host", "0.0.0.0", "--port", 0) as started:
        assert started.line(0).startswith("color photographs at http://127.0.0.1:")
        warning = "warning: --host 0.0.0.0 lets everyone in its network color photographs here\n"
        assert started.err.read_text() == warning
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) == -signal.SIGTERM


def test_ctrl_c_ends_it_while_a_photograph_arrives(fork_server: ForkServer, tmp_path: Path) -> None:
    with forked(fork_server, tmp_path, "--port", 0) as started:
        with announced(started.line(0).split()[3].removeprefix("http://"), 1000):
            started.process.send_signal(signal.SIGINT)
            assert started.process.wait(60) == 0
        assert "Traceback" not in started.err.read_text()
        assert started.err.read_text().endswith("stopped\n")


@pytest.mark.slow
def test_it_starts_in_a_new_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpc_recolor.serve", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[3]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"<!doctype html>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_port_that_is_taken_is_refused(invoke: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = error_line(invoke("serve", "--port", port))
    assert f"--host 127.0.0.1 --port {port}: cannot listen there (Address already in use)" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "192.0.2.1"], "--host 192.0.2.1"),
        (["nowhere", "--port", "0"], "nowhere"),
        (["--port", "65536"], "--port"),
        (["--max_waiting", "0"], "--max_waiting"),
        (["--max_megapixels", "101"], "--max_megapixels"),
    ],
    ids=" ".join,
)
def test_illegal_flags_are_refused(invoke: Command, tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in error_line(invoke("serve", *arguments))
    assert contents(tmp_path) == {}


def test_without_its_extra_the_fix_is_named(invoke: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    line = error_line(invoke("serve"))
    assert line == "error: serve: needs FastAPI and uvicorn; pip install 'hpc-recolor[app]'"
