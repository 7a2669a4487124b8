"""Signals that ask a run to stop: they set a flag, on which the ranks agree after each step, then save and exit.

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

# Sent by the scheduler before the time limit or a preemption: the job is to be requeued. It is not after SIGTERM, as
# from scancel, SIGINT, or SIGHUP, which comes when a terminal is closed.
PREEMPTION = signal.SIGUSR2
SIGNALS = (PREEMPTION, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The user may have wanted these ignored: the whole foreground of a terminal gets them.
FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP)
SIGINTS_TO_END_AT_ONCE = 3


class StopRequest:
    """While entered, SIGUSR2, SIGTERM, SIGINT and SIGHUP set a flag; the third SIGINT ends the process at once, with
    130. A SIGHUP that was ignored before, as under nohup, stays so, and so does a SIGINT, which scripts let their
    background commands ignore. A SIGUSR2 that was blocked before, so that it waits
    while an interpreter starts, is received.

    signal: the name of the first one received, or SIGUSR2 if that was received too, since schedulers send SIGTERM with
    it. Outside the main thread, where Python allows no handlers, signals keep their former effect.

    until_exit: the process exits soon after this context. If a signal was received, the handlers stay installed, so
    that further ones cannot change the exit code.
    """

    def __init__(self, until_exit: bool = False) -> None:
        self.until_exit = until_exit
        self.signal: str | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._old_wakeup = -1
        self._written = -1
        self._was_blocked = False

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    @property
    def wants_requeue(self) -> bool:
        """Whether the scheduler is to queue the job again."""
        return self.signal == PREEMPTION.name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            obeyed = [number for number in SIGNALS if number not in FROM_TERMINALS or not _is_ignored(number)]
            self._old_handlers = {number: signal.signal(number, self._remember) for number in obeyed}
            self._listen()
            self._was_blocked = PREEMPTION in signal.pthread_sigmask(signal.SIG_UNBLOCK, [PREEMPTION])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._old_handlers or (self.until_exit and self.requested):
            return
        if self._was_blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, [PREEMPTION])
        for number, old in self._old_handlers.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        self._old_handlers = {}
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._written)  # ends the listener

    def _remember(self, number: int, frame: FrameType | None) -> None:
        repeated = self.requested
        if not repeated or number == PREEMPTION:
            self.signal = signal.Signals(number).name
        if is_main_process() and not repeated:
            # print is not reentrant, and the reader may have exited, as tee does on Ctrl-C.
            with suppress(OSError):
                os.write(2, f"{self.signal}: will stop after this step, once the state is saved\n".encode())

    def _listen(self) -> None:
        # Python runs handlers between bytecodes of the main thread, which may be stuck in a collective; set_wakeup_fd
        # writes its byte immediately.
        read, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._old_wakeup = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_third_sigint, args=(read,), name="signals", daemon=True).start()


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def _end_at_third_sigint(read: int) -> None:
    sigints = 0
    with os.fdopen(read, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            sigints += number[0] == signal.SIGINT
            if sigints == SIGINTS_TO_END_AT_ONCE:
                os._exit(INTERRUPTED)
