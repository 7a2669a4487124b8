"""The import rule of the plan: rooms import downward only, and each library has one door."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = "commands"

# A room may import the rooms before it in this list, and those on its own floor that stand before it.
FLOORS = (
    ("recolor_kernels",),
    ("hpc_recolor.errors", "hpc_recolor.findings", "hpc_recolor.progress", "hpc_recolor.code_version"),
    ("hpc_recolor.config", "hpc_recolor.distributed"),
    ("hpc_recolor.run_folder", "hpc_recolor.tensor_files", "hpc_recolor.checkpoints", "hpc_recolor.run_lock"),
    ("hpc_recolor.data", "hpc_recolor.color_space", "hpc_recolor.models"),
    ("hpc_recolor.evaluation",),
    ("hpc_recolor.reporting",),
    ("hpc_recolor.training",),
    ("hpc_recolor.cli",),
    ("hpc_recolor.launch",),
    (COMMANDS,),
)
DOORS = {
    "nvidia": "hpc_recolor/data/pipeline.py",
    "deepspeed": "hpc_recolor/training/engine.py",
    "submitit": "hpc_recolor/launch/",
    "yaml": "hpc_recolor/config.py",
    "wandb": "hpc_recolor/training/boards.py",
    "jinja2": "hpc_recolor/reporting/page.py",
}

FILES = sorted([*ROOT.glob("hpc_recolor/**/*.py"), *ROOT.glob("kernels/recolor_kernels/**/*.py")])


def room_of(module: str) -> str:
    rooms = [room for floor in FLOORS for room in floor if module == room or module.startswith(room + ".")]
    return rooms[0] if rooms else COMMANDS


def floor_of(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


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
    for imported in imports_of(file):
        if imported.startswith(("hpc_recolor.", "recolor_kernels")) and imported != "hpc_recolor.__version__":
            other = room_of(imported)
            assert other == room or floor_of(other) < floor_of(room) or _same_floor_below(other, room), (
                f"{module_of(file)} ({room}) imports {imported} ({other}), which is not below it"
            )


def _same_floor_below(other: str, room: str) -> bool:
    floor = FLOORS[floor_of(room)]
    return other in floor and floor.index(other) < floor.index(room)


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
