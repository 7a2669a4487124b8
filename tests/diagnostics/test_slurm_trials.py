"""Trials of SLURM's nodes: what needs no cluster of them; scripts stand for SLURM's commands."""

import os
import signal
import threading
from pathlib import Path

import pytest

from hpc_recolor.diagnostics import node_trials, slurm_trials
from hpc_recolor.diagnostics.node_trials import Result
from hpc_recolor.diagnostics.outliers import NodeReport
from hpc_recolor.diagnostics.slurm_trials import node_names
from hpc_recolor.launch.job_folder import JobFolder, make_private, read_history
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.run_folder.files import to_json
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, FAILED, STOPPED

REPORTS = [NodeReport("node1", failures={"scratch": "No space left on device"}), NodeReport("node2")]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of commands that come before those of the machine."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")


@pytest.fixture
def folder(tmp_path: Path, commands: None, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """Of a job on node1 and node2, in which this process is."""
    folder = JobFolder(tmp_path / "run" / "job")
    make_private(folder.path)
    folder.options.write_bytes(to_json(JobOptions(nodes=2, preflight=True, exclude_bad=True)))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setattr("sys.argv", ["slurm_trials", str(folder.path)])
    stand_for(tmp_path, "scontrol", "echo node1; echo node2")
    return folder


def stand_for(folder: Path, command: str, script: str) -> None:
    file = folder / "bin" / command
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_a_warning_of_slurm_is_no_node() -> None:
    text = "node1\nnode-2.cluster\nscontrol: error: _parse_next_key: Unknown key\nscontrol: warning\n"
    assert node_names(text) == ["node1", "node-2.cluster"]


def test_a_job_that_gets_an_excluded_node_again_stops_with_how_to_resume_it(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.excluded("7").write_text("node2,node3")
    assert slurm_trials.main() == STOPPED
    first, last = capsys.readouterr().err.splitlines()
    assert first == "stopped: job 7 was given node2 again, which it excludes"
    assert last.startswith("The run is saved; resume it with: python -m hpc_recolor.jobs restart ")
    (event,) = read_history(folder)
    assert (event.kind, event.exit_code, event.nodes) == ("end", STOPPED, ("node1", "node2"))
    assert event.reason == "preflight: job 7 was given node2 again, which it excludes"


@pytest.mark.parametrize(
    ("sinfo", "code"),
    [("echo 'node1|idle'; echo 'node2|idle'; echo 'node3|idle'", STOPPED), ("echo no answer >&2; exit 1", FAILED)],
)
def test_a_bad_node_is_in_the_history_even_if_sinfo_fails(
    sinfo: str, code: int, folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_trials, "try_nodes", lambda *_: Result(REPORTS))
    stand_for(tmp_path, "sinfo", sinfo)
    assert slurm_trials.main() == code
    (event,) = read_history(folder)
    assert (event.kind, event.exit_code) == ("end", code)
    assert str(event.reason).startswith("preflight: node1: scratch: ")
    assert folder.excluded("7").exists() == (code == STOPPED)


def test_a_job_whose_nodes_slurm_does_not_name_ends_in_the_history(folder: JobFolder, tmp_path: Path) -> None:
    stand_for(tmp_path, "scontrol", "echo slurmctld does not respond >&2; exit 1")
    assert slurm_trials.main() == BAD_INPUT
    (event,) = read_history(folder)
    assert (event.kind, event.exit_code) == ("end", BAD_INPUT)


@pytest.mark.usefixtures("commands")
def test_an_allocation_that_fails_is_given_back_by_its_name(tmp_path: Path) -> None:
    stand_for(tmp_path, "salloc", f"echo $* >{tmp_path}/salloc; echo nobody knows >&2; exit 1")
    stand_for(tmp_path, "scancel", f"echo $* >{tmp_path}/scancel")
    with pytest.raises(UserError, match="nobody knows"):
        slurm_trials.try_allocated(JobOptions(nodes=2, memory_gb=12))
    (name,) = [word for word in (tmp_path / "salloc").read_text().split() if word.startswith("--job-name=")]
    assert "--mem=12288M" in (tmp_path / "salloc").read_text()
    assert (tmp_path / "scancel").read_text().split()[0] == name.replace("--job-name", "--name")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("commands")
def test_an_allocation_is_given_back_when_a_signal_ends_the_command(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    os.mkfifo(tmp_path / "began")
    stand_for(tmp_path, "salloc", f"echo >{tmp_path}/began; exec sleep 60")
    stand_for(tmp_path, "scancel", f"echo $* >{tmp_path}/scancel")

    def end_once_begun() -> None:
        (tmp_path / "began").read_text()
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=end_once_begun)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        slurm_trials.try_allocated(JobOptions(nodes=2))
    thread.join()
    assert ended.value.code == 128 + number
    assert (tmp_path / "scancel").read_text().startswith("--name=doctor-")
    assert signal.getsignal(number) is before
