"""The site that `make docs` builds: strictly, whole, and without a request to any other machine."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from hpc_recolor import __all__ as public_names
from hpc_recolor.config import policies
from hpc_recolor.launch.profile import Container, Profile
from recolor_kernels import __all__ as kernel_names
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

# What a browser fetches of a page, and of a style sheet.
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)", re.I)
FETCHED_BY_STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--config-file", "docs/mkdocs/mkdocs.yml"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_names_a_file_of_another_machine_to_fetch(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [(page.name, found) for page in pages for found in FETCHED.findall(page.read_text())] == []
    styles = [*pages, *site.rglob("*.css")]
    assert [(page.name, found) for page in styles for found in FETCHED_BY_STYLES.findall(page.read_text())] == []


@pytest.mark.parametrize("page", ["index.html", "api.html", "configuration.html", "tutorial.html"])
def test_a_browser_asks_for_files_of_the_site_alone(browser: Browser, site: Path, page: str) -> None:
    asked: list[str] = []
    window = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    window.on("request", lambda request: asked.append(request.url))
    window.on("pageerror", lambda error: asked.append(f"error: {error}"))
    window.goto((site / page).as_uri())
    assert asked and all(url.startswith((site.as_uri(), "data:")) for url in asked)
    assert window.evaluate("document.documentElement.scrollWidth") == 390  # wide tables and code scroll by themselves
    window.context.close()


def test_pages_that_lie_beside_their_subject_are_in_it(site: Path) -> None:
    for page, words in {
        "index.html": "Color a photograph",
        "slurm.html": "Follow, cancel, restart",
        "kernels.html": "How a loss computes its gradient",
        "model-card.html": "What it colors wrongly",
        "contributing.html": "The rooms",
    }.items():
        assert words in (site / page).read_text(), page


def test_every_field_of_the_config_is_explained(site: Path) -> None:
    page = (site / "configuration.html").read_text()
    rows = dict(re.findall(r'<tr>\s*<td><span id="([\w.]+)">(.*?)</tr>', page, re.DOTALL))
    assert set(rows) == set(policies())
    cells = re.findall(r"<td>(.*?)</td>", rows["train.lr"], re.DOTALL)
    assert cells[0] == "<code>0.0002</code>" and "Adam" in cells[1] and cells[2] == "recipe, fixed"
    assert "<code>dali</code>" in rows["data.loader"] and ">fixed<" in rows["data.loader"]


def test_every_key_of_a_profile_is_explained(site: Path) -> None:
    page = (site / "profile.html").read_text()
    for key in (*Profile.model_fields, *Container.model_fields):
        assert f"<tr>\n<td><code>{key}</code><br" in page, key
    assert "<code>pyxis</code>, <code>apptainer</code>" in page


def test_all_public_names_are_explained(site: Path) -> None:
    page = unescape((site / "api.html").read_text())
    explained = set(re.findall(r'<h\d id="([\w.]+)" class="doc doc-heading"', page))
    assert {f"hpc_recolor.{name}" for name in public_names} - explained == {"hpc_recolor.__version__"}
    values = {"AB_SCALE", "Criterion", "Impl"}
    functions = {f"recolor_kernels.{name}" for name in {*kernel_names} - values}
    assert functions - explained == {"recolor_kernels.gather", "recolor_kernels.norm_act"}  # also names of modules
    assert {"recolor_kernels.gather.gather", "recolor_kernels.norm_act.norm_act"} <= explained
    assert "predicted a*, b*." in page  # no emphasis


def test_examples_are_shown(site: Path) -> None:
    page = unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text()))
    for file in (ROOT / "docs" / "examples").glob("*.py"):
        assert file.read_text() in page, file.name


def test_links_to_files_that_are_not_in_the_site_are_named_instead(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert "Vulnerabilities: SECURITY.md" in re.sub(r"<[^>]+>", "", index)
    assert 'href="model-card.html"' in index and 'href="quickstart.html"' in index
