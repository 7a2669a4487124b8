"""The kernels meet their requirements on three architectures, and the report detects violations."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compile_report.cases import cases
from recolor_kernels import color

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
OPS = [case.op for case in cases()]


def run_compiling(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run Python where Triton compiles, with an empty cache."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The report's rows by architecture and op."""
    folder = tmp_path_factory.mktemp("report")
    result = run_compiling(folder, "-m", "benchmarks.compile_report", "--out", "report.json")
    assert (folder / "report.json").exists(), result.stderr
    found = defaultdict(list)
    for row in json.loads((folder / "report.json").read_text())["rows"]:
        found[row["architecture"], row["op"]].append(row)
    assert result.returncode == int(any(row["violations"] for rows in found.values() for row in rows))
    return found


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_no_narrow_accesses_and_offsets_in_64_bits(
    rows: dict[tuple[str, str], list[dict[str, Any]]], architecture: str, op: str
) -> None:
    assert rows[architecture, op]
    violations = [f"{row['kernel']} {violation}" for row in rows[architecture, op] for violation in row["violations"]]
    assert not violations, "\n".join(violations)


def test_rows_hold_what_was_compiled(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    forward, backward = rows["sm_90", "lab_to_rgb float32"]
    assert (forward["kernel"], backward["kernel"]) == ("_lab_to_rgb_kernel", "_lab_to_rgb_backward_kernel")
    assert forward["load_bytes"] == forward["store_bytes"] == [16]
    assert 0 < forward["registers"] < 256
    assert forward["instructions"] == forward["instructions_per_item"] * color.PIXELS_PER_PROGRAM / 128


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Violations of kernels that were made to have them."""
    result = run_compiling(tmp_path_factory.mktemp("planted"), ROOT / "tests" / "support" / "planted.py")
    assert result.returncode == 0, result.stderr
    violations: dict[str, list[str]] = json.loads(result.stdout)
    return violations


def test_a_faultless_kernel_passes(planted: dict[str, list[str]]) -> None:
    assert planted["faultless"] == []


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("multiplies_in_32_bits", "offset from a 32-bit product"),
        ("multiplies_in_32_bits_in_a_loop", "offset from a 32-bit product"),
        ("cuts_to_32_bits", "offset from a 32-bit product"),
        ("moves_single_values", "4 bytes wide, expected 16 or more"),
        ("spills", "spills"),
        ("spills", "accesses to local memory"),
    ],
)
def test_a_planted_fault_is_found(planted: dict[str, list[str]], kernel: str, fault: str) -> None:
    assert any(fault in violation for violation in planted[kernel]), planted[kernel]


def test_a_missing_folder_is_reported_at_once(tmp_path: Path) -> None:
    result = run_compiling(tmp_path, "-m", "benchmarks.compile_report", "--out", "missing/report.json")
    assert result.returncode == 2
    assert result.stderr == "error: out=missing/report.json: no such folder missing; create it first\n"
