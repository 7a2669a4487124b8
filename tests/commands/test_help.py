"""`--help` is complete, and costs no heavy import."""

import subprocess
import sys

import pytest

from hpc_recolor.__main__ import COMMANDS
from hpc_recolor.config import Config
from tests.conftest import ROOT

HEAVY = ("torch", "deepspeed", "nvidia.dali", "triton", "submitit", "matplotlib")
CHECK = """
import sys
from {module} import app
from hpc_recolor import cli
code = cli.run(app)
heavy = [name for name in {heavy} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize(
    "module",
    [
        *(f"hpc_recolor.{name}" for name in COMMANDS),
        "hpc_recolor.demo",
        "benchmarks.data",
        "benchmarks.step",
        "benchmarks.kernels.__main__",
    ],
)
def test_help_imports_nothing_heavy(module: str) -> None:
    script = CHECK.format(heavy=HEAVY, module=module)
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_lists_every_field_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hpc_recolor.train", "--help"], capture_output=True, text=True, env={"COLUMNS": "500"}
    )
    lines = done.stdout.splitlines()
    for section, values in Config():
        for field, info in type(values).model_fields.items():
            row = next(line for line in lines if f"--{section}.{field} " in line)
            assert info.description is not None
            assert info.description.split("[")[0].strip() in row, row
            if info.annotation in (int, float):
                assert "[" in info.description, f"{field} does not say its unit"
                assert {int: "INT", float: "FLOAT"}[info.annotation] in row, row
            if info.default is not None:
                assert f"[default: {info.default}]" in row.replace("'", ""), row
