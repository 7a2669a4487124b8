"""Any text is printed as it is read, and output that cannot be written ends no run."""

import io
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped, shell_command
from tests.conftest import TINY
from tests.support.commands import environment
from tests.support.fork_server import ForkServer


def test_a_run_whose_log_cannot_be_written_trains_and_saves(
    fork_server: ForkServer, photos: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        arguments = ("--data.photos", photos, *TINY)
        with fork_server.start("hpc_recolor.train", arguments, tmp_path, environment(), full, full) as process:
            assert process.wait() == 0
    assert list(tmp_path.glob("runs/train/checkpoints/images-*"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name, Größe, 写真, \u0645\u06cc\u200c\u062e", None),  # joiners are part of words
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("two\nlines\t\x1b[31m", r"two\nlines\t\x1b[31m"),
        ("evil\u202egnp.exe\u2066\u200f", r"evil\u202egnp.exe\u2066\u200f"),
        ("\x9b31m\x7f\u2028", r"\u009b31m\x7f\u2028"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_escaped(name: str, shown: str | None) -> None:
    assert escaped(name) == (shown or name)


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda word: b"\0" not in word), max_size=4))
def test_a_printed_command_is_read_back_by_the_shell_word_for_word(words: list[bytes]) -> None:
    line = shell_command("printf", r"%s\0", "", *map(os.fsdecode, words))
    assert line.encode().isascii() or escaped(line) == line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"\0" + b"".join(word + b"\0" for word in words)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_name_can_be_printed(encoding: str) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    name = os.fsdecode(b"caf\xe9 \xc3\xa9\x1b[31m.jpg")

    def action() -> None:
        print(name)
        raise UserError(name, "is odd", "rename it")

    with redirect_stdout(out), redirect_stderr(err):
        assert cli.exit_code(action, distributed=False) == 2
    for stream in (out, err):
        stream.flush()
    assert out.buffer.getvalue().startswith(rb"caf\udce9 ")
    assert err.buffer.getvalue().startswith(rb"error: caf\xe9 ") and b"\x1b" not in err.buffer.getvalue()
