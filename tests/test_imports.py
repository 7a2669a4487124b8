"""The import rule of CONTRIBUTING.md: rooms import downward only, and each library has one door."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMMANDS = "commands"
COMMAND_MODULES = {
    f"hpc_recolor{name}"
    for name in (
        *("", ".__main__", ".train", ".submit", ".jobs", ".prepare", ".evaluate", ".report", ".colorize"),
        *(".checkpoint", ".doctor", ".study", ".demo", ".dev_cluster", ".serve"),
    )
}

# A room may import the rooms that stand before it in this list.
ROOMS = (
    "recolor_kernels",
    "hpc_recolor.runtime",
    "hpc_recolor.config",
    "hpc_recolor.models.shapes",
    "hpc_recolor.config_file",
    "hpc_recolor.run_folder",
    "hpc_recolor.models",
    "hpc_recolor.data",
    "hpc_recolor.evaluation",
    "hpc_recolor.reporting",
    "hpc_recolor.serving",
    "hpc_recolor.training",
    "hpc_recolor.cli",
    "hpc_recolor.launch",
    "hpc_recolor.diagnostics",
    COMMANDS,
)
DOORS = {
    "nvidia": "hpc_recolor/data/pipeline.py",
    "deepspeed": "hpc_recolor/training/engine/deepspeed_engine.py",
    "submitit": "hpc_recolor/launch/",
    "yaml": "hpc_recolor/config_file.py",
    "wandb": "hpc_recolor/training/tracking/boards.py",
    "timm": "hpc_recolor/models/backbone.py",
    "pillow_heif": "hpc_recolor/data/photo.py",
    "onnxruntime": "hpc_recolor/evaluation/portable_files.py",
    "jinja2": "hpc_recolor/reporting/page.py",
    "fastapi": "hpc_recolor/serving/",
    "starlette": "hpc_recolor/serving/",
    "uvicorn": "hpc_recolor/serving/",
}

FILES = sorted([*ROOT.glob("hpc_recolor/**/*.py"), *ROOT.glob("kernels/recolor_kernels/**/*.py")])


def room_of(module: str) -> str | None:
    """The room of a module, or of a name in one; None if it is in no room of this list."""
    if module in COMMAND_MODULES:
        return COMMANDS
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


def module_of(file: Path) -> str:
    base = ROOT / "kernels" if "kernels" in file.relative_to(ROOT).parts[:1] else ROOT
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; name the module in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_rooms_import_downward_only(file: Path) -> None:
    room = room_of(module_of(file))
    assert room, f"{module_of(file)} is in no room of ROOMS: move it, or add its room here and in CONTRIBUTING.md"
    for imported in imports_of(file):
        if imported.startswith(("hpc_recolor.", "recolor_kernels")):
            other = room_of(imported) or room_of(imported.rpartition(".")[0])
            assert other and (other == room or ROOMS.index(other) < ROOMS.index(room)), (
                f"{module_of(file)} ({room}) imports {imported} ({other}), which is not below it"
            )


@pytest.mark.parametrize("folder", ["hpc_recolor", "tests"])
def test_no_two_files_have_one_name(folder: str) -> None:
    names = Counter(path.name for path in (ROOT / folder).rglob("*.py"))
    assert [name for name, count in names.items() if count > 1 and name not in ("__init__.py", "conftest.py")] == []


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_each_library_has_one_door(file: Path) -> None:
    place = file.relative_to(ROOT).as_posix()
    for imported in imports_of(file):
        door = DOORS.get(imported.split(".")[0])
        assert door is None or place.startswith(door), f"{place} imports {imported}; its door is {door}"


def test_kernels_know_nothing_but_tensors() -> None:
    allowed = {"torch", "triton", "recolor_kernels", *sys.stdlib_module_names}
    for file in FILES:
        if "recolor_kernels" in file.parts:
            for imported in imports_of(file):
                assert imported.split(".")[0] in allowed, f"{file.name} imports {imported}"


def test_nothing_of_ours_unpickles() -> None:
    """Files come from anywhere; pickles run code when they are read."""
    for file in FILES:
        assert not {"pickle", "cloudpickle", "dill"} & set(imports_of(file)), file
        assert not re.search(r"torch\.load\b|allow_pickle=True|\.load_checkpoint\(", file.read_text()), file
