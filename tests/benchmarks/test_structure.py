"""What `benchmarks.structure` counts, on a small tree and on this one."""

from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks.structure import ROOT, find_arrows, find_circles, measure, read_modules, room_of

FILES = {
    "hpc_recolor/__init__.py": "",
    "hpc_recolor/data/__init__.py": "",
    "hpc_recolor/data/batches.py": """
        from recolor_kernels.color import convert

        def load(path: str, *, size=1):
            \"\"\"A docstring
            of two lines.\"\"\"
            from hpc_recolor import train

            return train
        """,
    "hpc_recolor/train.py": """
        from hpc_recolor.data.batches import load

        class Trainer:
            def run(self, steps: int) -> None:
                pass

            def _step(self): ...
        """,
    "kernels/recolor_kernels/__init__.py": "",
    "kernels/recolor_kernels/color.py": """
        @triton.jit
        def convert(pointer, SIZE: tl.constexpr):
            pass
        """,
    "benchmarks/step.py": "import hpc_recolor.train\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(content))
    return tmp_path


def test_arrows_point_from_room_to_imported_room_inside_functions_too(tree: Path) -> None:
    arrows = {("data", "kernels"), ("data", "train"), ("train", "data"), ("benchmarks", "train")}
    assert find_arrows(read_modules(tree), room_of) == arrows
    assert find_circles(arrows) == [["data", "train"]]


def test_counts_of_a_small_tree(tree: Path) -> None:
    counts = measure(tree)
    assert (counts["files"], counts["rooms"], counts["functions"]) == (7, 5, 4)
    assert counts["function_lines_max"] == 4  # load, without its docstring
    assert counts["arguments_annotated"] == pytest.approx(2 / 3, abs=1e-4)
    assert counts["arguments_annotated_triton"] == 0.5
    assert counts["public_functions_documented"] == pytest.approx(1 / 3, abs=1e-4)


def test_this_tree_has_no_circles_and_all_arguments_typed() -> None:
    counts = measure(ROOT)
    assert (counts["circles"], counts["training_circles"], counts["arguments_annotated"]) == ([], [], 1)
