"""Signals set a flag, and nothing else, until the third Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_recolor.runtime.exit_codes import INTERRUPTED
from hpc_recolor.runtime.signals import SIGNALS, StopRequest
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def on_a_terminal() -> Iterator[None]:
    """SIGHUP and SIGINT as they come from a shell, also if the tests were started under nohup or in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_sets_the_flag_and_a_second_one_changes_nothing(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        send(number, signal.SIGTERM)
        assert stop.signal == number.name
    assert capfd.readouterr().err == f"{number.name}: will stop after this step, once the state is saved\n"


def test_a_closed_terminal_is_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        send(signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_ctrl_c_is_ignored_by_a_background_command_of_a_script() -> None:
    """`train & other; wait`: Ctrl-C reaches both, but the shell has the first one ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        send(signal.SIGINT)
        assert not stop.requested
        send(signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_scheduler_that_sends_sigterm_first_still_has_the_run_queued_again() -> None:
    with StopRequest() as stop:
        send(signal.SIGTERM)
        assert not stop.wants_requeue
        send(signal.SIGUSR2)
        assert stop.wants_requeue
        send(signal.SIGTERM)
        assert stop.wants_requeue


def test_a_signal_that_was_held_while_the_interpreter_started_is_received_and_one_at_its_end_is_held_again() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.raise_signal(signal.SIGUSR2)  # to this thread: others of the tests do not hold it
    with StopRequest() as stop:
        assert stop.wants_requeue
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_only_rank_0_says_that_it_will_stop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with StopRequest() as stop:
        send(signal.SIGTERM)
        assert stop.requested
    assert capfd.readouterr().err == ""


def test_handlers_and_wakeup_are_restored_and_nothing_stays_open() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    for listener in (thread for thread in threading.enumerate() if thread.name == "signals"):
        listener.join(timeout=10)
        assert not listener.is_alive()


def test_outside_the_main_thread_it_does_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    inside: list[object] = []

    def enter() -> None:
        with StopRequest() as stop:
            inside.extend([stop.requested, [signal.getsignal(number) for number in SIGNALS]])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [False, before]


# A main thread that C++ holds, as a collective does: no Python handler is called in it.
HELD = """
import ctypes, os, signal
from hpc_recolor.runtime.signals import StopRequest
with StopRequest():
    print(os.getpid(), flush=True)
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("held", [True, False])
def test_the_third_ctrl_c_ends_at_once_whatever_the_main_thread_does(held: bool) -> None:
    code = HELD if held else HELD.split("    mutex")[0] + "    while True: pass\n"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    try:
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):  # signals sent too close together would count as one
                process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == INTERRUPTED
    finally:
        process.kill()
        process.communicate()


LEAVING = """
import os, signal, sys
from hpc_recolor.runtime.signals import StopRequest
with StopRequest(until_exit=True):
    os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGUSR2)
sys.exit(75)
"""


def test_signals_that_come_while_a_stopped_process_leaves_do_not_change_its_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 75


def test_a_signal_is_obeyed_where_nobody_reads_what_is_said() -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", LEAVING], cwd=ROOT, stderr=written, timeout=60)
    os.close(written)
    assert done.returncode == 75


def test_it_is_there_before_torch_is_imported() -> None:
    code = "import sys, hpc_recolor.runtime.signals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), timeout=60).returncode == 0
