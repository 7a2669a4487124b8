"""Logs of ranks as they grow: complete lines, in order, without terminal control sequences."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.launch import follow as module
from hpc_recolor.launch.follow import POLL_S, follow, printable, tail
from hpc_recolor.runtime.errors import UserError

WRITER = """
import sys, time
out = open(sys.argv[1], "ab", buffering=0)
for number in range(200):
    for part in (b"line ", str(number).encode(), b"\\n"):
        out.write(part)
        time.sleep(0.001)
out.write(b"without an end")
"""


def shown(paths: dict[int, Path], has_ended: Callable[[], bool] = lambda: True, **starts: int) -> list[str]:
    lines: list[str] = []
    follow(paths, has_ended, lines.append, {int(rank[1:]): start for rank, start in starts.items()})
    return lines


class Steps:
    """A `has_ended` that performs the next action on each call, and returns True after the last one."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.actions = list(actions)

    def __call__(self) -> bool:
        if self.actions:
            self.actions.pop(0)()
        return not self.actions


def append(path: Path, content: bytes) -> Callable[[], object]:
    def action() -> None:
        with path.open("ab") as file:
            file.write(content)

    return action


def test_lines_carry_the_number_of_their_rank(tmp_path: Path) -> None:
    paths = {rank: tmp_path / str(rank) for rank in (10, 2)}
    paths[10].write_text("a\n\nb\n")
    paths[2].write_text("c\n")
    assert shown(paths) == ["rank 2 | c", "rank 10 | a", "rank 10 | ", "rank 10 | b"]


def test_what_a_process_writes_comes_whole_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(log)]) as writer:
        lines = shown({0: log}, lambda: writer.poll() is not None)
    assert lines == [f"rank 0 | line {number}" for number in range(200)] + ["rank 0 | without an end"]


def test_files_may_come_later_or_never(tmp_path: Path) -> None:
    paths = {0: tmp_path / "later", 1: tmp_path / "never"}
    assert shown(paths, Steps(lambda: None, append(paths[0], b"here\n"))) == ["rank 0 | here"]


def test_a_line_waits_for_its_end_and_letters_for_all_their_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines: list[str] = []
    seen: list[list[str]] = []
    steps = Steps(
        append(log, b"one\ngr\xc3"),
        lambda: seen.append(list(lines)),
        append(log, b"\xbcn\n"),
        lambda: seen.append(list(lines)),
    )
    follow({0: log}, steps, lines.append)
    assert seen == [["rank 0 | one"], ["rank 0 | one", "rank 0 | grün"]]


def test_what_was_written_before_the_end_is_not_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert shown({0: log}, Steps(append(log, b"last\nwords"))) == ["rank 0 | last", "rank 0 | words"]


def test_bytes_that_are_not_text_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\xfe!\n")
    assert shown({0: tmp_path / "log"}) == ["rank 0 | \ufffd\ufffd!"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("\x1b[31mred\x1b[0m, \x1b[1;38;2;1;2;3mbold\x1b[m", "red, bold"),
        ("\x1b[2J\x1b[Hcleared\x1b[?25l", "cleared"),
        ("\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        ("\x1bP1$r\x1b\\\x1b(Bab\x1bc\x1b7", "ab"),
        ("\x9b31mC1\x9d0;t\x9c", "C1"),
        ("bell\x07 back\x08 delete\x7f null\x00", "bell back delete null"),
        ("tab\tstays, größer 色", "tab\tstays, größer 色"),
        ("cut off \x1b", "cut off "),
    ],
)
def test_control_sequences_are_not_shown(tmp_path: Path, written: str, expected: str) -> None:
    (tmp_path / "log").write_text(written + "\n")
    assert shown({0: tmp_path / "log"}) == [f"rank 0 | {expected}"]


@given(st.text())
def test_what_is_printable_has_no_control_characters(text: str) -> None:
    left = printable(text)
    assert not any((ord(character) < 32 and character != "\t") or 127 <= ord(character) < 160 for character in left)
    assert printable(left) == left


def test_the_last_state_of_a_progress_bar_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"10 %\r 50 %\r100 %\r\nended by Windows\r\n")
    assert shown({0: tmp_path / "log"}) == ["rank 0 | 100 %", "rank 0 | ended by Windows"]


def test_large_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 7)
    (tmp_path / "log").write_text("".join(f"{number} äöü\n" for number in range(100)))
    assert shown({0: tmp_path / "log"}) == [f"rank 0 | {number} äöü" for number in range(100)]


def test_waiting_is_not_a_busy_loop(tmp_path: Path) -> None:
    turns = 10
    started_s = time.monotonic()
    assert shown({0: tmp_path / "log"}, Steps(*[lambda: None] * turns)) == []
    assert time.monotonic() - started_s > (turns - 1) * POLL_S * 0.99


def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log .*: cannot be read \(Is a directory\)"):
        shown({0: tmp_path})
    with pytest.raises(UserError, match="Is a directory"):
        tail(tmp_path, 1)


@given(st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\n\n"])).map(b"".join), st.integers(0, 6), st.integers(1, 4))
def test_tail_finds_where_the_last_lines_begin(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, lines: int, chunk_bytes: int
) -> None:
    log = tmp_path_factory.getbasetemp() / "tail"
    log.write_bytes(content)
    all_lines = content.splitlines(keepends=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        start = tail(log, lines)
    assert content[start:] == b"".join(all_lines[max(0, len(all_lines) - lines) :])


def test_following_continues_from_the_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("1\n2\n3\n4")
    assert shown({0: log}, Steps(append(log, b"!\n5\n")), r0=tail(log, 2)) == [
        "rank 0 | 3",
        "rank 0 | 4!",
        "rank 0 | 5",
    ]
    assert tail(tmp_path / "none", 3) == 0
