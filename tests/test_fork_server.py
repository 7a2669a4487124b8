"""A fork of the fork server ends, prints and is ended as a program in a new interpreter would be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import environment, run_forked
from tests.support.fork_server import ForkServer

PROGRAM = """
import atexit, os, sys, threading, time
assert __name__ == "__main__"
atexit.register(lambda: print("at exit", os.environ.get("COLOR"), os.getcwd(), sys.argv[1:]))
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
{end}
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit()", "sys.exit(3)", "sys.exit('no color')", "1 / 0", "os._exit(4)"])
def test_output_and_exit_code_are_those_of_an_interpreter(
    end: str, fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOR", "red")
    (tmp_path / "program.py").write_text(PROGRAM.format(end=end))
    forked = run_forked(fork_server, tmp_path, "program", ["a", 1])
    command = [sys.executable, "-m", "program", "a", "1"]
    fresh = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_signals_reach_it_and_it_does_not_outlive_its_test(fork_server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("while True: pass\n")
    with fork_server.start("endless", [], tmp_path, environment()) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(60) == process.poll() == -signal.SIGTERM
    with fork_server.start("endless", [], tmp_path, environment()) as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_once_a_rank_has_failed_the_others_are_terminated(fork_server: ForkServer, tmp_path: Path) -> None:
    program = "import os, sys, time\nos.environ['RANK'] == '1' and sys.exit(2)\ntime.sleep(1000)\n"
    (tmp_path / "failing.py").write_text(program)
    assert run_forked(fork_server, tmp_path, "failing", [], ranks=3).returncode == 1
