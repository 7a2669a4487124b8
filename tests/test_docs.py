"""What the documentation names exists, and docs/architecture.md leaves out no file of its table `To add something`."""

import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.structure import find_arrows, read_modules, room_of
from hpc_recolor.config import AdversarialName, DataConfig, GeneratorName
from hpc_recolor.evaluation.metric_registry import METRICS

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("docs/*.md"), *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "slurm/README.md"))]
NAMED = sorted({match for page in PAGES for match in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text())})
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
# A path in backticks, and the names in backticks that follow it in parentheses or after a comma.
FILE = re.compile(r"`([\w./-]+\.(?:py|md|yaml|sh))`(?: \(([^)]*)\)|, `(\w+)`)?")
ROWS = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", ARCHITECTURE, re.MULTILINE))
PRODUCT = [*ROOT.glob("hpc_recolor/**/*.py"), *ROOT.glob("kernels/recolor_kernels/*.py")]
ADDED: dict[str, list[str]] = {
    "a generator": list(get_args(GeneratorName)),
    "a distance to the original colors": ["huber"],  # "ciede2000" is also the name of a metric
    "an adversarial criterion": ["bce", "mse"],  # "l1" is also the name of a metric
    "a metric": ["mae", "psnr", "ssim"],  # the others are compared in the report, too
    "a loader": ["dali"],  # "torch" is also a package
}


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_a_page_names_exists(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    assert not test or f"\ndef {test}(" in (ROOT / file).read_text()


def test_two_faults_or_more_of_each_kind_were_found_here() -> None:
    kinds = re.split(r"^## ", (ROOT / "docs" / "robustness.md").read_text(), flags=re.MULTILINE)[1:]
    found = {kind.partition(" ")[0]: len(re.findall(r"^\|.*\(found here", kind, re.MULTILINE)) for kind in kinds}
    assert list(found) == [f"{number}." for number in range(1, 10)]
    assert min(found.values()) >= 2, found


def named_files(text: str) -> list[tuple[str, list[str]]]:
    return [
        (path, re.findall(r"`(\w+)`", inside) + ([after] if after else []))
        for path, inside, after in FILE.findall(text)
    ]


@pytest.mark.parametrize(("path", "names"), named_files(ARCHITECTURE), ids=str)
def test_files_and_names_exist(path: str, names: list[str]) -> None:
    if "NAME" in path:
        assert (ROOT / path).parent.is_dir()
        return
    content = (ROOT / path).read_text()
    # A function, a class or a constant of the module; a test's or a script's text.
    missing = [name for name in names if not re.search(rf"^(def |class )?{name}\b", content, re.MULTILINE)]
    assert not missing, f"docs/architecture.md: {path} does not define {missing}"


def shown_code(text: str) -> list[tuple[str, str]]:
    """The blocks of code of a page that a path in backticks and a colon announce, without their indent."""
    blocks = re.findall(r"`([\w/]+\.py)`[^\n`]*:\n\n((?:    .*\n|\n(?=    ))+)", text)
    return [(path, re.sub(r"^    ", "", block, flags=re.MULTILINE)) for path, block in blocks]


EXTENDING = shown_code((ROOT / "docs" / "extending.md").read_text())


@pytest.mark.parametrize(("path", "code"), EXTENDING, ids=[path for path, _ in EXTENDING])
def test_code_that_a_page_shows_is_that_of_the_package(path: str, code: str) -> None:
    source = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    place = 0
    for part in code.split("...\n"):
        lines = [line.strip() for line in part.strip().splitlines()]
        starts = [start for start in range(place, len(source)) if source[start : start + len(lines)] == lines]
        assert starts, f"{path} does not hold {lines}"
        place = starts[0] + len(lines)


def test_code_is_shown_of_each_step() -> None:
    assert len(EXTENDING) == (ROOT / "docs" / "extending.md").read_text().count(".py`:\n") == 13


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\s([a-z_]+/[a-z_/]+(?:\.py|/))[, \n]", ARCHITECTURE))))
def test_places_on_the_way_of_a_photograph_exist(path: str) -> None:
    assert (ROOT / "hpc_recolor" / path).exists() or (ROOT / path).exists()


@pytest.mark.parametrize("kind", ADDED)
def test_what_is_there_was_added_in_the_files_that_the_table_names(kind: str) -> None:
    listed = {path for path, _ in named_files(ROWS[kind])}
    for name in ADDED[kind]:
        quoting = {str(file.relative_to(ROOT)) for file in PRODUCT if re.search(rf"[\"']{name}[\"']", file.read_text())}
        own = {path for path in quoting if Path(path).stem == name}
        assert quoting - own <= listed, f"docs/architecture.md: `{kind}` leaves out {sorted(quoting - own - listed)}"
        assert quoting, f"{name}: found nowhere"


def test_the_table_knows_the_names() -> None:
    assert set(ADDED["an adversarial criterion"]) < set(get_args(AdversarialName))
    assert {*ADDED["a loader"], "torch", "auto"} == set(get_args(DataConfig.model_fields["loader"].annotation))
    assert set(ADDED["a metric"]) < {metric.key for metric in METRICS}


def test_every_cluster_profile_has_a_stored_script() -> None:
    profiles = {file.stem for file in (ROOT / "slurm" / "profiles").glob("*.yaml")}
    assert profiles <= {file.stem for file in (ROOT / "tests" / "launch" / "scripts").glob("*.sh")}


def floors() -> dict[str, int]:
    """The rooms of the drawing, from the commands (0) down."""
    lines = re.findall(r"^    \|(.*)\|$", ARCHITECTURE, re.MULTILINE)
    return {cell.split()[0]: floor for floor, line in enumerate(lines) for cell in line.split("|")}


def drawn_room(module: str) -> str | None:
    """The room of the drawing that a module, or a name in one, belongs to."""
    room = room_of(module)
    if room in ("config", "config_file") or module.startswith("hpc_recolor.models.shapes"):
        return "config"
    drawn = {"kernels": "recolor_kernels", "benchmarks": None, "hpc_recolor": None}.get(str(room), room)
    return drawn if drawn is None or drawn in floors() else "commands"


def test_rooms_import_lower_floors_of_the_drawing_only() -> None:
    floor = floors()
    arrows = find_arrows(read_modules(ROOT), drawn_room)
    assert {room for arrow in arrows for room in arrow} == set(floor)
    assert [(one, other) for one, other in arrows if floor[one] >= floor[other]] == []


def test_git_ignores_what_the_commands_of_the_readme_make() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    named = {*re.findall(r"--out (\S+)", (ROOT / "README.md").read_text()), "runs/quickstart", ".venv"}
    made = {name if name.endswith(".html") else f"{name}/" for name in named}
    assert {"colorized/", "data/mine/", "report.html"} <= made
    done = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) == made
    source = ["git", "check-ignore", "hpc_recolor/data/new.py", "tests/data/new.py"]
    assert subprocess.run(source, cwd=ROOT, capture_output=True).returncode == 1
