"""What is printed: texts with any file name in them, and output that may get lost.

Names of files may hold any bytes. A terminal would obey control characters in them, and a strict stream refuses bytes
that are not UTF-8. A run must not end because its log's disk is full, or its terminal is gone.
"""

import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

# Control characters, line separators, marks that turn the direction of text around (Unicode, UAX 9), and surrogates,
# which are bytes that are not UTF-8 as os.fsdecode returns them.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """A text in one line that a terminal shows as it is: what is not printable is \\n, \\xff, \\u202e and so on."""
    return UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def shell_command(*words: object) -> str:
    """A command line to be printed, for bash or zsh to read: words are quoted where necessary."""
    return " ".join(_quoted(str(word)) for word in words)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return f"\\u{ord(character):04x}" if ord(character) > 0x7F else character.encode("unicode_escape").decode()


def _quoted(word: str) -> str:
    if not UNPRINTABLE.search(word):
        return shlex.quote(word)
    return "$'" + escaped(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def print_any_name() -> None:
    """Let stdout and stderr print every text: what their encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class LossyOutput:
    """A text stream that drops what cannot be written. In everything else it is the stream that it was made of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop, a text."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lossy_output() -> Iterator[None]:
    """While entered, what stdout and stderr cannot take is dropped and raises no error."""
    with redirect_stdout(LossyOutput(sys.stdout)), redirect_stderr(LossyOutput(sys.stderr)):
        yield
