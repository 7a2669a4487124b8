"""Damaged and hostile files, what may come of reading them, and how long to look for more.

Files are changed versions of whole ones, so that faults lie behind the first check too.
"""

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from hpc_recolor.runtime.errors import UserError

# Examples that have failed and are not mended yet; every run of the tests here tries them first.
FAILURES = Path(__file__).parents[2] / ".hypothesis" / "fuzz"

# For one file. The largest photograph that is decoded has a hundred million pixels, of four bytes in Pillow, and there
# may be a converted and a turned copy of it.
MEMORY_BYTES = 2**31
TIME_S = 60.0
MESSAGE_LENGTH = 20_000

# --- How often

Check = Callable[[], None] | type[RuleBasedStateMachine]


@dataclass(frozen=True)
class Fuzz:
    """Runs a check on so many examples, of so many seeds; with `budget_s` on ever new ones until that time is over.

    Examples of one seed resemble each other: of a state machine, several seeds with a few examples try more.
    """

    budget_s: float
    first_seed: int

    def __call__(self, check: Check, examples: int, seeds: int = 1, steps: int = 10) -> None:
        end_s = time.monotonic() + self.budget_s
        chosen = settings(
            max_examples=examples,
            stateful_step_count=steps,
            database=DirectoryBasedExampleDatabase(FAILURES),
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),  # files are large and slow on purpose
        )
        run = _runner(check, chosen)
        for number in count():
            print(f"seed {self.first_seed + number}")  # shown if it fails
            run(self.first_seed + number)
            if number + 1 >= seeds and time.monotonic() >= end_s:
                break


def _runner(check: Check, chosen: settings) -> Callable[[int], None]:
    """Runs the check on the examples of a seed."""
    if isinstance(check, type):
        return lambda number: run_state_machine_as_test(seed(number)(check), settings=chosen)
    checked = chosen(check)
    return lambda number: seed(number)(checked)()


# --- What may come of it


class HangError(AssertionError):
    """It has taken far too long."""


@contextmanager
def bounded() -> Iterator[None]:
    """Within, more than MEMORY_BYTES more memory cannot be had, and TIME_S raises HangError. Main thread only."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise HangError(f"not done after {TIME_S} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, TIME_S)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def read_or_refused(*others: type[Exception]) -> Iterator[None]:
    """Within, a file is read, or refused by a UserError of a readable length, or by one of `others`."""
    refusals: list[UserError] = []
    with bounded():
        try:
            yield
        except UserError as error:
            refusals.append(error)
        except others:
            pass
    for refusal in refusals:
        assert all((refusal.subject, refusal.problem, refusal.fix)), "a part of the message is missing"
        assert len(str(refusal)) <= MESSAGE_LENGTH, f"a message of {len(str(refusal))} characters"


# --- Files

# Names as `os.fsdecode` returns them too, whose bytes are not UTF-8.
TEXTS = st.text(max_size=8) | st.sampled_from(["", "\udcff.jpg", "\0", "../x", "/etc/passwd", "a\nb", "é" * 300])
NUMBERS = st.integers(-3, 3) | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 10**400])
FLOATS = st.sampled_from([0.5, -0.0, 1e308, float("inf"), float("nan")])
SCALARS = st.none() | st.booleans() | NUMBERS | FLOATS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
# Deeper than parsers recurse, longer than anything, and what is special to parsers.
HOSTILE = (
    *(b"[" * 10_000, b'{"a":' * 10_000, b"9" * 5000, b"\xff\xfe", b"\0", b"\r\n", b'"', b"\\ud800"),
    *(b"1e999", b"NaN", b"{}", b"[]", b"null", b" " * 10_000),
)
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


@st.composite
def changed_tree(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of JSON with a few values replaced, removed or added, at any depth."""
    for _ in range(draw(st.integers(1, 3))):
        tree = draw(_changed_once(tree))
    return tree


@st.composite
def _changed_once(draw: st.DrawFn, tree: Any) -> Any:
    if isinstance(tree, dict | list) and tree and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
        changed = tree.copy()
        if draw(st.integers(0, 5)):
            changed[key] = draw(_changed_once(tree[key]))
        else:
            del changed[key]
        return changed
    if isinstance(tree, dict) and draw(st.booleans()):
        return tree | {draw(TEXTS): draw(VALUES)}
    if isinstance(tree, list) and draw(st.booleans()):
        return [*tree, draw(VALUES)]
    return draw(VALUES)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with a few bytes changed, inserted, removed, repeated or cut off; often in its header or at its end."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        length = len(changed)
        at = draw(st.integers(0, min(length, 128)) | st.integers(max(0, length - 128), length) | st.integers(0, length))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        match draw(st.sampled_from(["flip", "number", "insert", "hostile", "remove", "repeat", "cut"])):
            case "flip" if at < length:
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                order = draw(st.sampled_from(["little", "big"]))
                changed[at : at + size] = (draw(st.sampled_from(EDGES)) % 256**size).to_bytes(size, order)
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "hostile":
                changed[at:at] = draw(st.sampled_from(HOSTILE))
            case "remove":
                del changed[at : at + draw(st.integers(1, 64))]
            case "repeat":
                changed[at:at] = changed[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 3))
            case "cut":
                del changed[at:]
    return bytes(changed)


def first_seed_now() -> int:
    """A seed that no run before has used."""
    return random.SystemRandom().randrange(1, 10**6) * 1000
