"""What the documentation names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("docs/*.md"), *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "slurm/README.md"))]
NAMED = sorted({match for page in PAGES for match in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())})


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_a_page_names_is_there(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    assert not test or f"\ndef {test}(" in (ROOT / file).read_text()
