"""docs/troubleshooting.md quotes messages of the tool."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@cache
def texts() -> str:
    """All strings of the source, one a line; of an f-string, the parts between its values."""
    parsed = [ast.parse(file.read_text()) for file in sorted(ROOT.glob("hpc_recolor/**/*.py"))]
    constants = [node.value for tree in parsed for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(constant for constant in constants if isinstance(constant, str))


@pytest.mark.parametrize("message", QUOTED)
def test_the_tool_says_so(message: str) -> None:
    assert message in texts()


def test_no_message_is_quoted_twice() -> None:
    assert len(QUOTED) > 40
    assert len(set(QUOTED)) == len(QUOTED)
