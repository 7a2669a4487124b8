"""The container files: no runtime builds them here, so what they copy, install and run is checked by itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_wheel import build

CONTAINERS = ROOT / "slurm" / "containers"
DOCKER = (CONTAINERS / "Dockerfile").read_text().replace("\\\n", " ")
APPTAINER = (CONTAINERS / "hpc_recolor.def").read_text()


def section(name: str) -> str:
    """The lines of a section of the Apptainer file."""
    found = re.search(rf"^%{name}\n((?:    .*\n|\n)+)", APPTAINER, re.MULTILINE)
    assert found, name
    return found.group(1)


def copied_by_docker() -> set[str]:
    lines = re.findall(r"^COPY (.+) (\S+)$", DOCKER, re.MULTILINE)
    assert all(target in ("./", sources) for sources, target in lines)
    return {name for sources, _ in lines for name in sources.split()}


def test_both_copy_the_same_files_which_exist_and_no_others_are_sent() -> None:
    copied = copied_by_docker()
    lines = [line.split() for line in section("files").splitlines() if line]
    assert {source for source, _ in lines} == copied
    assert {target for _, target in lines} == {"/opt/hpc_recolor/"}
    assert all((ROOT / name).exists() for name in copied)
    sent = (CONTAINERS / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in sent if line.startswith("!")} == copied


def test_both_start_from_one_image_and_install_the_same() -> None:
    image = r"^{}:? (\S+)$"
    assert re.findall(image.format("FROM"), DOCKER, re.MULTILINE) == re.findall(
        image.format("From"), APPTAINER, re.MULTILINE
    )
    for command in (r"apt-get install (.+?)\s*(?:&&|$)", r"pip install (.+)$"):
        (one,), (other,) = (re.findall(command, text, re.MULTILINE) for text in (DOCKER, section("post")))
        assert one == other
    extras = re.search(r"\.\[(.+)\]", DOCKER)
    assert extras and all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras.group(1).split(","))


@pytest.mark.slow
def test_what_they_copy_is_enough_to_build_the_package(tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    built.mkdir()
    for name in copied_by_docker():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    assert build("wheel", source, built).suffix == ".whl"


SCRIPTS = [section(name) for name in ("post", "test", "runscript")] + re.findall(r"^RUN (.+)$", DOCKER, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_shell_reads_their_lines(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
