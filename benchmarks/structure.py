"""`python -m benchmarks.structure`: size and shape of the product code (not the tests), counted with `ast` alone.

A room is a folder or a module directly below hpc_recolor/; kernels/ and benchmarks/ are one room each. An arrow is a
distinct pair of rooms of which one imports the other, imports inside functions included. A circle is a set of rooms
that reach each other along arrows. Inside training/ the same is counted with its modules and folders as rooms.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
Arrow = tuple[str, str]

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hpc_recolor": "hpc_recolor",
    "kernels": "kernels",
    "recolor_kernels": "kernels",
    "benchmarks": "benchmarks",
}
LONG_LINES = 60


@dataclass(frozen=True)
class Module:
    """A parsed file. name: dotted, as it is imported."""

    name: str
    lines: int
    tree: ast.Module

    @property
    def functions(self) -> list[Function]:
        """All functions and methods, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


def read_modules(root: Path) -> list[Module]:
    """The product code below a repository's root."""
    modules = []
    for folder in ("hpc_recolor", "kernels", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            parts = parts[1:] if parts[:2] == ("kernels", "recolor_kernels") else parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text()
            modules.append(Module(name, len(text.splitlines()), ast.parse(text)))
    return modules


def measure(root: Path) -> dict[str, Any]:
    """Every count of a tree, by name. Shares are between 0 and 1."""
    modules = read_modules(root)
    lengths = sorted(_lines(function) for module in modules for function in module.functions)
    arrows = find_arrows(modules, room_of)
    inside = find_arrows(modules, _training_room)
    functions = [function for module in modules for function in module.functions]
    compiled = [function for function in functions if _is_triton(function)]
    public = [function for module in modules for function in _public_functions(module.tree.body)]
    return {
        "commit": _commit(root),
        "files": len(modules),
        "lines": sum(module.lines for module in modules),
        "functions": len(lengths),
        "function_lines_median": median_low(lengths),
        "function_lines_p99": lengths[int(0.99 * (len(lengths) - 1))],
        "function_lines_max": lengths[-1],
        f"functions_over_{LONG_LINES}_lines": sum(length > LONG_LINES for length in lengths),
        "rooms": len({room_of(module.name) for module in modules}),
        "arrows": len(arrows),
        "circles": find_circles(arrows),
        "training_rooms": len({room for module in modules if (room := _training_room(module.name))}),
        "training_arrows": len(inside),
        "training_circles": find_circles(inside),
        "arguments_annotated": _share(_annotations(function for function in functions if function not in compiled)),
        "arguments_annotated_triton": _share(_annotations(compiled)),
        "public_functions": len(public),
        "public_functions_documented": _share(ast.get_docstring(function) is not None for function in public),
    }


def room_of(module: str) -> str | None:
    """The room of a module, or of a name in one; None outside this repository, and of hpc_recolor/__init__.py, which is
    above all rooms with the names that it offers and below them with the version."""
    package, _, inner = module.partition(".")
    room = PACKAGES.get(package)
    return inner.split(".")[0] or None if room == "hpc_recolor" else room


def _training_room(module: str) -> str | None:
    """The module or folder of training/ that holds a module."""
    inner = module.removeprefix("hpc_recolor.training.")
    return inner.split(".")[0] if inner != module else None


def find_arrows(modules: Iterable[Module], room: Callable[[str], str | None]) -> set[Arrow]:
    """Pairs (importing room, imported room)."""
    modules = list(modules)
    known = {module.name for module in modules}
    pairs = {(room(module.name), room(name)) for module in modules for name in _imported(module, known)}
    return {(one, other) for one, other in pairs if one and other and one != other}


def _imported(module: Module, known: set[str]) -> Iterator[str]:
    """Modules of this repository that a module imports: `from a.b import c` is a.b.c where that is a module."""
    for node in ast.walk(module.tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in full]
        yield from (name for name in names if name in known)


def find_circles(arrows: set[Arrow]) -> list[list[str]]:
    """Sets of two or more rooms that reach each other (strongly connected components)."""
    reached = {room: {other for one, other in arrows if one == room} for arrow in arrows for room in arrow}
    for middle in reached:
        for others in reached.values():
            others |= reached[middle] if middle in others else set()
    circles = {frozenset(other for other in reached[room] if room in reached[other]) for room in reached}
    return sorted(sorted(circle) for circle in circles if circle)


def _lines(function: Function) -> int:
    """Lines from `def` on, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return (function.end_lineno or 0) - function.lineno + 1 - documented * ((first.end_lineno or 0) - first.lineno + 1)


def _is_triton(function: Function) -> bool:
    return any("jit" in ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in function.decorator_list)


def _annotations(functions: Iterable[Function]) -> Iterator[bool]:
    """For every argument but self and cls: whether it has a type."""
    for function in functions:
        spec = function.args
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        yield from (each.annotation is not None for each in arguments if each.arg not in ("self", "cls"))


def _public_functions(body: Iterable[ast.stmt]) -> Iterator[Function]:
    """Functions of a module and methods of its public classes whose names begin with no underscore."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node.body)
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4) if values else 1.0


def measure_revision(revision: str) -> dict[str, Any]:
    """`measure` of a commit of this repository. Raises CalledProcessError if git does not know it."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
        return measure(Path(folder)) | {"commit": revision}


def _commit(root: Path) -> str | None:
    """None outside a git repository."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or None


def main() -> int:
    """Print one row per count; write them to `--out`."""
    parser = argparse.ArgumentParser(prog="benchmarks.structure", allow_abbrev=False, description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="repository to count; this one by default")
    parser.add_argument("--before", metavar="COMMIT", help="commit of this repository to compare with")
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    given = parser.parse_args()
    sides = {"before": measure_revision(given.before)} if given.before else {}
    sides["after"] = measure(given.root)
    for name in sides["after"]:
        print(f"{name:<32}", *(f"{side[name]!s:>12}" for side in sides.values()))
    if given.out:
        given.out.write_text(json.dumps(sides, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
