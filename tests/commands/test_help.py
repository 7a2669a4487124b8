"""`--help` is complete, and costs no heavy import."""

import os
import re
import subprocess
import sys

import pytest

from hpc_recolor.cli import COMMANDS
from hpc_recolor.config import Config
from tests.conftest import ROOT

MODULES = (
    *(f"hpc_recolor.{name}" for name in COMMANDS),
    *("benchmarks.data", "benchmarks.step", "benchmarks.kernels.__main__"),
)
HEAVY = ("torch", "deepspeed", "nvidia.dali", "triton", "submitit", "matplotlib")
# One process for all: whichever module is the first to import something heavy is named.
CHECK = f"""
import sys
from importlib import import_module
from hpc_recolor import cli
for module in {MODULES}:
    print(f"--- {{module}}", flush=True)
    code = cli.run(import_module(module).app, ["--help"])
    heavy = [name for name in {HEAVY} if name in sys.modules]
    if heavy or code:
        sys.exit(f"{{module}} imported {{heavy}}, exit code {{code}}")
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What each command prints, by its module."""
    wide = os.environ | {"COLUMNS": "500"}  # a row on one line
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, cwd=ROOT, env=wide)
    assert done.returncode == 0, done.stderr
    _, *found = done.stdout.split("--- ")
    return {name: page for name, _, page in (each.partition("\n") for each in found)}


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_heavy(pages: dict[str, str], module: str) -> None:
    assert "Usage" in pages[module]


def test_help_lists_every_field_with_type_default_and_meaning(pages: dict[str, str]) -> None:
    lines = pages["hpc_recolor.train"].splitlines()
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


def test_help_groups_the_fields_by_section_of_the_config(pages: dict[str, str]) -> None:
    for module in ("hpc_recolor.train", "hpc_recolor.submit", "hpc_recolor.demo"):
        titles = re.findall(r"^╭─ (.+?) ─", pages[module], re.MULTILINE)
        assert titles == ["Parameters", *Config.model_fields]
    for name, box in re.findall(r"^╭─ (\w+) ─+╮$(.*?)^╰", pages["hpc_recolor.train"], re.MULTILINE | re.DOTALL)[1:]:
        assert {flag.split(".")[0] for flag in re.findall(r"^│ +--(\S+)", box, re.MULTILINE)} == {name}


def test_no_command_has_a_box_for_help_alone(pages: dict[str, str]) -> None:
    for module, page in pages.items():
        assert "--help" not in page, module
        assert ("Commands" in page) == (module.rpartition(".")[2] in ("jobs", "checkpoint", "dev_cluster")), module


def test_a_command_is_named_as_part_of_the_program(pages: dict[str, str]) -> None:
    for name in COMMANDS:
        assert pages[f"hpc_recolor.{name}"].startswith(f"Usage: hpc-recolor {name} ")
