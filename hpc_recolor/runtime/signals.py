"""Signals that ask a run to stop: a flag, which the ranks agree on after each step, before they save and leave.

Installed before torch is imported, since schedulers do not wait for imports.
"""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from hpc_recolor.runtime.distributed import is_main_process
from hpc_recolor.runtime.exit_codes import INTERRUPTED

# What schedulers are told to send where time is up, or another job comes first: the run wants another turn. After
# SIGTERM, as from scancel, or SIGINT it does not.
MAKE_ROOM = signal.SIGUSR2
SIGNALS = (MAKE_ROOM, signal.SIGTERM, signal.SIGINT)
SIGINTS_TO_END_AT_ONCE = 3


class StopRequest:
    """While entered, SIGUSR2, SIGTERM and SIGINT set a flag; the third SIGINT ends the process at once, with 130.

    requested: whether one has come; signal: the name of the first, or SIGUSR2 if that came too, since schedulers send
    SIGTERM beside it. Outside the main thread, where Python allows no handlers, signals do what they did before.

    until_exit: the process ends soon after this is left. If a signal has come then, the next ones must not end it with
    another exit code, so they go on doing nothing.
    """

    def __init__(self, until_exit: bool = False) -> None:
        self.until_exit = until_exit
        self.signal: str | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._old_wakeup = -1
        self._written = -1

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def wants_requeue(self) -> bool:
        return self.signal == MAKE_ROOM.name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {number: signal.signal(number, self._remember) for number in SIGNALS}
            self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._old_handlers or (self.until_exit and self.requested):
            return
        for number, old in self._old_handlers.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        self._old_handlers = {}
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._written)  # ends the listener

    def _remember(self, number: int, frame: FrameType | None) -> None:
        told = self.requested
        if not told or number == MAKE_ROOM:
            self.signal = signal.Signals(number).name
        if is_main_process() and not told:
            # print could meet a print that this signal has interrupted; who reads may have gone, as tee on Ctrl-C.
            with suppress(OSError):
                os.write(2, f"{self.signal}: will stop after this step, once the state is saved\n".encode())

    def _listen(self) -> None:
        # Python calls handlers between bytecodes of the main thread, which may hang in a collective for good; the byte
        # of set_wakeup_fd is written at once.
        read, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._old_wakeup = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_third_sigint, args=(read,), name="signals", daemon=True).start()


def _end_at_third_sigint(read: int) -> None:
    sigints = 0
    with os.fdopen(read, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            sigints += number[0] == signal.SIGINT
            if sigints == SIGINTS_TO_END_AT_ONCE:
                os._exit(INTERRUPTED)
