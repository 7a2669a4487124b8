"""The page: what was read, judged and drawn, put together into one HTML file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hpc_recolor.reporting import compare, curves, forest, grids, numbers, tables, verdicts
from hpc_recolor.reporting.pictures import Thumbnails
from hpc_recolor.reporting.runs import Run, read_runs
from hpc_recolor.run_folder.files import without_empty_folders, write_atomically
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.errors import UserError

HERE = Path(__file__).parent
SCRIPTS = ("theme.js", "tables.js", "pictures.js", "grid.js", "dialog.js", "plots.js")

# JSON inside an HTML element: nothing in it may end the element, or the line of an old parser.
UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Wishes:
    """What the user wants on the page. data, pictures: names of evaluations; images: photographs in a grid at most."""

    data: str | None = None
    pictures: str | None = None
    images: int = 24
    title: str = "Training runs compared"
    notes: Path | None = None


@dataclass(frozen=True)
class Block:
    """A piece of the notes: a heading or a paragraph."""

    heading: bool
    text: str


def write_report(folders: Sequence[Path], out: Path, wishes: Wishes) -> int:
    """Write the page about these runs, and return its size in bytes.

    Raises UserError, with nothing written, if a run or an evaluation cannot be read or the page cannot be written.
    """
    _check_target(out)
    blocks = read_notes(wishes.notes) if wishes.notes else []
    content = build(read_runs(folders), wishes, blocks).encode(errors="replace")  # names of files may be no UTF-8
    try:
        with without_empty_folders(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, content)
    except OSError as error:
        raise UserError(f"out={out}: cannot write it ({error.strerror}); name a file in a folder of yours") from None
    return len(content)


def build(runs: Sequence[Run], wishes: Wishes, notes: Sequence[Block] = ()) -> str:
    """The page as HTML. Raises UserError if an evaluation that is asked for is not there."""
    data = _chosen("data", wishes.data, runs) or compare.choose_data(runs)
    shown = _chosen("pictures", wishes.pictures, runs) or data
    thumbnails = Thumbnails(_largest_grid(runs, shown, wishes.images))
    groups = compare.group(runs, data)
    judged = [verdicts.judge(run, data) for run in runs]
    config_rows = compare.config_rows(runs)
    together = grids.comparison_grids(runs, shown, wishes.images, thumbnails)
    epochs = grids.epoch_grids(runs, shown, wishes.images, thumbnails)
    extremes = grids.extreme_grids(runs, shown, thumbnails)
    drawn = curves.plots(runs)
    every_grid = [*together, *epochs, *(grid for two in extremes for grid in two)]
    script_data = {
        "runs": [{"name": run.name} for run in runs],
        "prefix": thumbnails.prefix,
        "side": thumbnails.side_px,
        "pictures": thumbnails.base64,
        "grids": {grid.id: grid.content for grid in every_grid},
        "plots": [asdict(plot) for plot in drawn],
    }
    return _environment().get_template("page.html.j2").render(
        title=wishes.title,
        notes=notes,
        now=datetime.now(UTC),
        version=code_commit() or PACKAGE_VERSION,
        summary=verdicts.summary(judged, data, groups),
        runs=runs,
        data=data,
        shown=shown,
        groups=groups,
        verdicts=judged,
        forest=forest.intervals(judged),
        comparisons=verdicts.compare(runs, data, groups),
        metrics=[
            (group, tables.metrics_table(group, _left_out(runs, group) if place == 0 else ()))
            for place, group in enumerate(groups)
        ],
        apart=[(group, compare.why_apart(group, groups[0])) for group in groups[1:]],
        unmeasured=[run for run in runs if not run.measured(data)],
        losses=[tables.losses_rows(group) for group in groups],
        grids=together,
        epoch_grids=epochs,
        extremes=extremes,
        side_px=thumbnails.side_px,
        photographs=_photographs(runs, shown),
        plots=drawn,
        thinned=curves.thinned(runs),
        training=tables.training(runs),
        config_rows=config_rows,
        how_to_measure=verdicts.how_to_measure,
        script_data=script_json(script_data),
    )  # fmt: skip


def script_json(data: Any) -> Markup:
    """Data as JSON that can stand in a script element, whatever texts it holds."""
    return Markup(json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(UNSAFE))


def read_notes(file: Path) -> list[Block]:
    """Plain text to headings (lines that begin with '# ') and paragraphs (parted by blank lines).

    Raises UserError if the file cannot be read as text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"notes={file}: {error.strerror}; name a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"notes={file}: it is not text; name a text file") from None
    blocks: list[Block] = []
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip() and not line.startswith("# "):
            lines.append(line.strip())
            continue
        if lines:
            blocks.append(Block(False, " ".join(lines)))
            lines = []
        if line.startswith("# "):
            blocks.append(Block(True, line[2:].strip()))
    return blocks


def _check_target(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"out={out}: it is a folder; name a file, as {out / 'report.html'}")


def _chosen(flag: str, name: str | None, runs: Sequence[Run]) -> str | None:
    there = sorted({data for run in runs for data in run.evaluations})
    if name is not None and name not in there:
        options = f"expected one of {', '.join(there)}" if there else "no run has any; evaluate them first"
        raise UserError(f"{flag}={name}: no run has an evaluation of that name; {options}")
    return name


def _largest_grid(runs: Sequence[Run], data: str | None, images: int) -> int:
    kept = (sum(photo.picture for photo in one.images) for run in runs for one in run.measured(data))
    return min(images, max(kept, default=0))


def _photographs(runs: Sequence[Run], data: str | None) -> list[int]:
    """How many photographs the shown evaluations have: one number if all agree."""
    return sorted({one.protocol.images for run in runs for one in run.measured(data)})


def _left_out(runs: Sequence[Run], group: compare.Group) -> list[Run]:
    inside = {run.number for run in group.runs}
    return [run for run in runs if run.number not in inside]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = numbers.number
    environment.filters["plural"] = numbers.plural
    environment.globals["asset"] = _asset
    environment.globals["scripts"] = SCRIPTS
    environment.globals["blank"] = numbers.BLANK
    return environment


def _asset(name: str) -> Markup:
    """One of our own files, as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
