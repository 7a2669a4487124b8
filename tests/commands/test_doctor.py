"""The doctor's table and exit code, and its findings on this machine."""

import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpc_recolor import doctor
from hpc_recolor.data import pack
from hpc_recolor.data.shards import PrepareOptions
from hpc_recolor.diagnostics import machine
from hpc_recolor.diagnostics.findings import Finding
from hpc_recolor.runtime.progress import silent
from tests.conftest import Command, error_line

ON_GPU = torch.cuda.is_available()
EXIT_CODES = {"ok": 0, "note": 0, "warning": 1, "error": 2}

# Beginnings of what nvidia-smi prints.
SMI = "| NVIDIA-SMI 570.124.06      Driver Version: 570.124.06     CUDA Version: 12.8     |"
NEWER_SMI = "| NVIDIA-SMI 595.45.04      KMD Version: 595.45.04     CUDA UMD Version: 13.2     |"


@pytest.fixture
def data_set(photos: Path, tmp_path: Path) -> Path:
    pack.prepare([photos], tmp_path / "set", PrepareOptions(size=32, val=3), threads=2, progress=silent)
    return tmp_path / "set"


def rows(table: str) -> dict[str, tuple[str, str]]:
    """Severity and the first line of what was found, by subject."""
    return {
        row[1]: (row[2], row[3]) for row in re.finditer(r"^ (\S.*?)  +(ok|note|warning|error)  +(.*?) *$", table, re.M)
    }


def test_whole_set_on_a_machine_that_can_train(command: Command, data_set: Path) -> None:
    done = command("doctor", data_set, fresh=True)
    found = rows(done.stdout)
    assert found["files"] == ("ok", "6 files are as written")
    for subject in ("data set", "samples", "duplicates", "packages", "DALI", "DeepSpeed", "NCCL/gloo"):
        assert found[subject][0] == "ok", done.stdout
    for subject in ("GPU", "Triton"):
        assert found[subject][0] == ("ok" if ON_GPU else "note"), done.stdout
    assert f"torch {version('torch')}" in found["packages"][1]
    assert found["NCCL/gloo"][1].startswith("nccl" if ON_GPU else "gloo")
    assert {*found} > {"driver", "SLURM", "free space", "/dev/shm", "memory"}
    assert done.returncode == max(EXIT_CODES[severity] for severity, _ in found.values())
    assert done.stderr.splitlines() == ["checking this machine"]


def test_damaged_files_are_listed_with_fixes(command: Command, data_set: Path) -> None:
    for name in ("train-00000.raw", "val-00000.raw"):
        (data_set / name).unlink()
    done = command("doctor", data_set)
    assert done.returncode == 2
    assert "train-00000.raw is missing" in done.stdout and "val-00000.raw is missing" in done.stdout
    assert done.stdout.count("fix: copy that file again") == 2


def test_missing_folder_is_refused_in_one_line(invoke: Command) -> None:
    assert "DIR=nowhere: no such file or folder" in error_line(invoke("doctor", "nowhere"))


def test_table_is_whole_on_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long_name = "/a/very/long/name" * 10
    doctor.show([Finding("files", "error", f"{long_name}\nno\udcff utf-8 [red]", fix="pip install '.[cuda13]'")])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown and "…" not in shown
    assert f"{long_name}\\nno\\xff" in re.sub(r"\s", "", shown)
    assert "[red]" in shown and "fix: pip install '.[cuda13]'" in shown


def test_a_failing_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'slurm_load_partitions: no controller' >&2\nexit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    # Other tests of this process may have joined a group, which must not be left: see `world`.
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    monkeypatch.setenv("RANK", "0")  # and none of the other variables that torchrun sets
    findings = {finding.subject: finding for finding in machine.check_machine(tmp_path / "gone", needs_cluster=True)}
    assert len(findings) == 11
    for subject, text in (
        ("SLURM", "slurm_load_partitions: no controller"),
        ("NCCL/gloo", "RANK: is set, but not"),
        ("free space", "No such file"),
    ):
        assert findings[subject].severity == "error" and findings[subject].fix
        assert text in findings[subject].message
    assert findings["DeepSpeed"].fix == findings["NCCL/gloo"].fix == "start ranks with torchrun, or unset RANK"
    assert findings["memory"].severity in ("ok", "warning")


def test_little_free_space_is_a_warning_with_the_figure(tmp_path: Path) -> None:
    for finding in (
        machine.check_space({tmp_path, Path()}, low_gib=1e9),
        machine.check_shared_memory(tmp_path, low_gib=1e9),
    ):
        assert finding.severity == "warning" and finding.fix
        assert re.search(r"\d\.\d GiB", finding.message)


@pytest.mark.parametrize(
    ("smi_output", "torch_cuda", "usable", "severity", "message"),
    [
        (SMI, "12.8", True, "ok", "driver 570.124.06 for CUDA 12.8, torch built for CUDA 12.8"),
        (SMI, "12.9", True, "ok", "12.9"),
        (NEWER_SMI, "13.0", True, "ok", "driver 595.45.04 for CUDA 13.2"),
        (SMI, "13.0", False, "error", "too new"),
        (SMI, "12.8", False, "error", "torch cannot use a GPU"),
        (SMI, None, False, "error", "torch is built without CUDA"),
    ],
)
def test_driver_must_be_new_enough_for_torch(
    smi_output: str, torch_cuda: str | None, usable: bool, severity: str, message: str
) -> None:
    finding = machine.assess_driver(smi_output, torch_cuda, usable)
    assert finding.severity == severity and message in finding.message
    assert finding.fix or severity == "ok"


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_a_gpu_that_could_round_to_tf32_does_so_only_if_asked(major: int, expected: bool) -> None:
    gpu = SimpleNamespace(name="NVIDIA X", total_memory=80 * 2**30, major=major, minor=0)
    message = machine.describe_gpus([gpu, gpu])
    assert message.startswith(f"2 x NVIDIA X, 80 GiB, compute capability {major}.0")
    assert ("unless train.tf32" in message) == expected


def test_a_cluster_is_asked_for_only_where_one_is_to_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for script in (None, "echo 'no controller' >&2; exit 1", "exit 0"):
        if script:
            (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "sinfo").chmod(0o755)
        optional, needed = machine.check_slurm(needed=False), machine.check_slurm(needed=True)
        assert (optional.severity, optional.fix) == ("note", "")
        assert needed.severity == "error" and "dev_cluster up" in needed.fix
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho main\n")
    assert machine.check_slurm(needed=True).severity == "ok"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("photos", "--nodes", "2"), "DIR=photos: not checked with --nodes; leave one of the two out"),
        (("--partition", "main"), "--partition, --profile: only available with --nodes; add --nodes N"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(arguments: tuple[str, ...], line: str, invoke: Command) -> None:
    assert line in error_line(invoke("doctor", *arguments))
