"""The command that shows, follows, cancels and restarts submitted runs. What needs SLURM is in tests/launch."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from submitit.local.local import start_controller

from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.launch.job_folder import (
    JobFolder,
    read_history,
    read_submission,
    write_submission,
)
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.run_folder.folder import RunFolder
from tests.conftest import ROOT, Command
from tests.support.submitted_runs import EPOCHS, call, end, output, refusal, start, submitted

DEADLINE_S = 60
# What a rank does, as far as these commands see it.
RANK = """
import os, signal, sys
from pathlib import Path
from hpc_recolor.launch.job_folder import Event, JobFolder, append_event

folder, job = JobFolder(Path(sys.argv[1])), os.environ["SUBMITIT_LOCAL_JOB_ID"]
event = {"job": job, "restart": 0, "time": "2026-01-01T00:00:00+00:00", "ranks": 1, "nodes": ("here",)}

def leave(number, frame):
    print("saved", flush=True)
    append_event(folder, Event(kind="end", exit_code=75, reason="stopped by SIGTERM after 64 images", **event))
    sys.exit(75)

signal.signal(signal.SIGTERM, leave)
append_event(folder, Event(kind="start", **event))
print("training", flush=True)
while True:
    signal.pause()
"""


def trained(run: RunFolder, images_seen: int = 640, epoch: float = 3.2, rate: float = 4.0) -> None:
    row = {"kind": "train", "images_seen": images_seen, "epoch": epoch, "images_per_s": rate}
    rows = ["{broken", json.dumps(row), json.dumps({"kind": "held_out", "images_seen": images_seen, "epoch": epoch})]
    run.metrics.write_text("\n".join(rows) + '\n{"kind": "train", "images_seen": 99999')


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen"
        time.sleep(0.05)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[RunFolder]:
    """A run that is training on this machine, under submitit's own controller."""
    run = submitted(tmp_path / "runs" / "local", cluster="local", ranks=1)
    home = JobFolder.of(run)
    command = shlex.join([sys.executable, "-c", RANK, str(home.path)])
    with start_controller(home.path, command, timeout_min=10, stderr_to_stdout=True) as controller:
        changes = {"job": str(controller.pid)}
        write_submission(home, read_submission(home).model_copy(update=changes))
        try:
            until(lambda: read_history(home) and home.log(str(controller.pid), 0).read_text())
            yield run
        finally:
            controller.terminate()


def test_list_shows_a_row_for_each_run_even_if_others_are_damaged(
    tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    running = submitted(tmp_path / "b-running", start(), submitted="2026-01-02T00:00:00+00:00")
    trained(running)
    submitted(tmp_path / "a-finished", start(job="1"), end("finished", 0, job="1"), job="1")
    for name in ("no-submission", "garbage", "open", "history", "metrics", "config"):
        submitted(tmp_path / name, submitted="2026-01-03T00:00:00+00:00")
    (tmp_path / "no-submission" / "job" / "submission.json").unlink()
    (tmp_path / "garbage" / "job" / "submission.json").write_bytes(b"\xff\x00")
    (tmp_path / "open" / "job").chmod(0o755)
    (tmp_path / "history" / "job" / "history.jsonl").write_bytes(b"\xff\x00\n")
    (tmp_path / "metrics" / "metrics.jsonl").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("a: [")
    (tmp_path / "no-run").mkdir()
    JobFolder.of(submitted(tmp_path / "sweep")).tasks.write_text("[]")
    assert call("list", tmp_path) == 0
    captured = capsys.readouterr()
    (complaint,) = captured.err.splitlines()
    assert complaint.startswith("states are read from the run folders alone; ")
    head, *lines = captured.out.splitlines()
    assert head.split("  ")[0] == "run"
    rows = {Path(line.split()[0]).name: re.split(r"  +", line) for line in lines}
    assert list(rows) == [
        *("garbage", "no-submission", "open", "a-finished", "b-running"),
        *("config", "history", "metrics"),
    ]
    assert rows["b-running"][1:] == ["42", "running", "3.2/45", "4.0", "34 min", "0"]
    assert rows["a-finished"][1:] == ["1", "finished", "0.0/45", "0", "finished"]
    assert all(rows[name][1] == "unreadable" for name in ("garbage", "no-submission", "open"))
    assert "mode 755" in rows["open"][-1]


def test_list_prints_json_for_scripts(tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path / "run", start(), end("stopped by SIGUSR2", 75), start(restart=1))
    trained(run)
    assert call("list", tmp_path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["run"] == str(run.path)
    assert (row["job"], row["state"], row["restarts"]) == ("42", "running", 1)
    assert (row["epoch"], row["epochs"], row["images_per_s"]) == (3.2, EPOCHS, 4.0)
    assert row["time_left_s"] == pytest.approx((EPOCHS * 200 - 640) / 4)
    assert row["last_stop"] == "stopped by SIGUSR2"


def test_list_of_nothing_suggests_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m hpc_recolor.submit" in output(capsys, "list", tmp_path)
    assert json.loads(output(capsys, "list", tmp_path, "--json")) == []
    assert "No such file" in refusal(capsys, "list", tmp_path / "none")


def test_a_terminal_gets_a_table_that_fits_it(tmp_path: Path) -> None:
    submitted(tmp_path / "run", end("\x1b[2Jlosses are not finite, " + "many words " * 20, 3), cluster="local")
    shown, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-m", "hpc_recolor.jobs", "list", "."]
    assert subprocess.run(command, cwd=tmp_path, env=environment, stdout=terminal, timeout=DEADLINE_S).returncode == 0
    os.close(terminal)
    with open(shown, "rb", buffering=0) as file:
        text = b""
        try:
            while chunk := file.read(4096):
                text += chunk
        except OSError:  # the other side is closed
            pass
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).replace("\r", "").split("\n")
    assert "last stop" in lines[1]
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= 100
    assert "".join(lines).count("words") == 20


def test_status_shows_one_run_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path / "a run", start(), end("stopped by SIGTERM", 75), cluster="local")
    trained(run)
    for name in ("images-000000000512", "images-000000000640"):
        (run.checkpoints / name).mkdir(parents=True)
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in output(capsys, "status", run.path).splitlines())
    assert shown == {
        "run": str(run.path),
        "job": "42",
        "state": "saved",
        "epoch": "3.2/45",
        "images/s": "4.0",
        "time left": "34 min",
        "restarts": "0",
        "last stop": "stopped by SIGTERM",
        "nodes": "node1",
        "checkpoint": str(run.checkpoints / "images-000000000640"),
        "logs": f"{run.path / 'job' / '42_0_log.out'} to 42_1_log.out",
        "restart": f"python -m hpc_recolor.jobs restart '{run.path}'",
    }


@pytest.mark.parametrize("name", ["status", "logs", "cancel", "restart"])
def test_a_folder_that_was_never_submitted_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "submit the run first" in refusal(capsys, name, tmp_path)


def test_logs_of_all_ranks_or_one_whole_or_their_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path / "run", cluster="local")
    assert call("logs", run.path) == 0
    assert "has no logs yet" in capsys.readouterr().err
    for rank in (0, 1):
        JobFolder.of(run).log("42", rank).write_text(f"one {rank}\ntwo {rank}\nthree {rank}")
    of_rank = [[f"rank {rank} | {word} {rank}" for word in ("one", "two", "three")] for rank in (0, 1)]
    assert sorted(output(capsys, "logs", run.path).splitlines()) == sorted(of_rank[0] + of_rank[1])
    assert output(capsys, "logs", run.path, "--rank", 1).splitlines() == of_rank[1]
    assert output(capsys, "logs", run.path, "--rank", 1, "--lines", 2).splitlines() == of_rank[1][1:]
    assert "--rank=2: job 42 has ranks 0 to 1" in refusal(capsys, "logs", run.path, "--rank", 2)
    assert "--lines=-1" in refusal(capsys, "logs", run.path, "--lines=-1")


def test_logs_end_quietly_when_their_reader_exits(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", cluster="local")
    JobFolder.of(run).log("42", 0).write_text("line\n" * 100_000)
    command = f"{sys.executable} -m hpc_recolor.jobs logs {run.path} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.stdout, done.stderr, done.returncode) == ("rank 0 | line\n", "", 0)


def test_following_ends_with_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path / "run", start(), end("finished", 0), cluster="local")
    JobFolder.of(run).log("42", 0).write_text("done\n")
    assert call("logs", run.path, "--follow") == 0
    captured = capsys.readouterr()
    assert captured.out == "rank 0 | done\n"
    assert captured.err == "job 42: finished | finished\n"


@pytest.mark.slow
def test_a_local_job_is_followed_left_and_cancelled(local: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    job = read_submission(JobFolder.of(local)).job
    follower = [sys.executable, "-m", "hpc_recolor.jobs", "logs", str(local.path), "--follow"]

    def watch() -> "subprocess.Popen[str]":
        return subprocess.Popen(follower, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with watch() as leaves, watch() as stays:
        for process in (leaves, stays):
            assert process.stdout and process.stdout.readline() == "rank 0 | training\n"
        leaves.send_signal(signal.SIGINT)
        shown = leaves.communicate(timeout=DEADLINE_S)
        assert leaves.returncode == 0
        assert shown[1] == (
            f"\njob {job} continues; follow it again with: python -m hpc_recolor.jobs logs {local.path} --follow\n"
        )
        assert json.loads(output(capsys, "status", local.path, "--json"))["state"] == "running"
        assert "is running; cancel it first" in refusal(capsys, "restart", local.path)
        assert f"python -m hpc_recolor.jobs restart {local.path}" in output(capsys, "cancel", local.path)
        shown = stays.communicate(timeout=DEADLINE_S)
        assert stays.returncode == 0
    assert shown == ("rank 0 | saved\n", f"job {job}: cancelled | stopped by SIGTERM after 64 images\n")
    assert JobFolder.of(local).cancelled(job).exists()
    assert "has already ended (cancelled)" in refusal(capsys, "cancel", local.path)


def test_a_job_that_slurm_cannot_cancel_may_still_be_requeued(
    tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", start())
    refusal(capsys, "cancel", run.path)
    assert not JobFolder.of(run).cancelled("42").exists()


@pytest.mark.parametrize("name", ["run", "other"])
def test_a_run_that_has_ended_is_submitted_again_wherever_it_stands(
    name: str, tmp_path: Path, command: Command
) -> None:
    run = submitted(tmp_path / name, start(), end("stopped by SIGTERM", 75), cluster="local", logs=tmp_path / "run/job")
    home = JobFolder.of(run)
    (home.code / "abc").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho starts\n")
    python.chmod(0o755)
    config = load_config(None, {"run": {"name": "run", "folder": tmp_path}, "data": {"photos": tmp_path / "photos"}})
    for file in (run.config, home.config):
        file.write_text(to_yaml(config))
    home.options.write_text(JobOptions(cluster="local", python=str(python)).model_dump_json())
    restarted = command("jobs", "restart", name)
    assert restarted.returncode == 0, restarted.stderr
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in restarted.stdout.splitlines())
    assert shown["job"] == read_submission(home).job != "42"
    assert shown["run"] == name
    assert shown["logs"] == str(home.log(shown["job"], 0))
    assert shown["follow"] == f"python -m hpc_recolor.jobs logs {name} --follow"
    assert load_config(run.config, {}).run.name == name
    assert {path.name for path in tmp_path.iterdir()} == {name, "photos", "python"}
    until(lambda: home.log(shown["job"], 0).exists() and home.log(shown["job"], 0).read_text() == "starts\n")


def sweep_of(folder: Path, *runs: RunFolder) -> Path:
    """The folder of a sweep as `submit` leaves it."""
    home = JobFolder(folder / "sweep" / "job")
    home.make()
    home.tasks.write_text(json.dumps([str(run.path) for run in runs]))
    return folder / "sweep"


def test_canceling_a_sweep_cancels_those_of_its_runs_that_have_not_ended(
    tmp_path: Path, local: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    done = submitted(tmp_path / "done", start(), end("finished", 0), cluster="local")
    sweep = sweep_of(tmp_path, done, local)
    printed = output(capsys, "cancel", sweep)
    assert f"restart {local.path}" in printed and str(done.path) not in printed
    until(lambda: "cancelled" in output(capsys, "status", local.path))
    assert "all runs of this sweep have already ended; nothing to cancel" in refusal(capsys, "cancel", sweep)


@pytest.mark.parametrize("name", ["status", "logs", "restart"])
def test_commands_on_one_run_name_the_runs_of_a_sweep(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", start(), cluster="local")
    line = refusal(capsys, name, sweep_of(tmp_path, run))
    assert f"is a sweep of 1 runs; name one of them, such as {run.path}" in line
