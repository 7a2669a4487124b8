"""Output that may get lost: a run must not end because its log's disk is full, or its terminal is gone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


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
