"""The report page: runs, verdicts, tables, curves and images in one HTML file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hpc_recolor.reporting import compare, curves, forest, fronts, grids, numbers, seeds, tables, verdicts
from hpc_recolor.reporting.runs import Run, read_runs
from hpc_recolor.reporting.thumbnails import Thumbnails
from hpc_recolor.run_folder.files import without_empty_folders, write_atomically
from hpc_recolor.runtime.code_version import PACKAGE_VERSION, code_commit
from hpc_recolor.runtime.errors import UserError

HERE = Path(__file__).parent
SCRIPTS = ("theme.js", "tables.js", "images.js", "grid.js", "dialog.js", "plots.js")

# JSON inside an HTML element must not end the element, or a line in an old parser.
UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class ReportOptions:
    """What the user may choose. data, image_data: names of the evaluations whose numbers and images are shown, None for
    the ones that most runs have; grid_size: the largest number of photographs in a grid; notes: a text file."""

    data: str | None = None
    image_data: str | None = None
    grid_size: int = 24
    title: str = "Training runs compared"
    notes: Path | None = None


@dataclass(frozen=True)
class Block:
    """A block of the notes: a heading or a paragraph."""

    heading: bool
    text: str


def write_report(folders: Sequence[Path], out: Path, options: ReportOptions) -> int:
    """Write the page about these runs, and return its size in bytes.

    Raises UserError, with nothing written, if a run or an evaluation cannot be read or the page cannot be written.
    """
    _check_target(out)
    blocks = read_notes(options.notes) if options.notes else []
    content = build(read_runs(folders), options, blocks).encode(errors="replace")  # file names may not be UTF-8
    try:
        with without_empty_folders(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, content)
    except OSError as error:
        raise UserError(
            f"out={out}", f"cannot be written ({error.strerror})", "name a file in a folder that you can write to"
        ) from None
    return len(content)


def build(runs: Sequence[Run], options: ReportOptions, notes: Sequence[Block] = ()) -> str:
    """The page as HTML. Raises UserError if no run has an evaluation that the options name."""
    data = _chosen("data", options.data, runs) or compare.choose_data(runs)
    image_data = _chosen("pictures", options.image_data, runs) or data
    thumbnails = Thumbnails(_largest_grid(runs, image_data, options.grid_size))
    groups = compare.group(runs, data)
    run_verdicts = [verdicts.verdict_on(run, data) for run in runs]
    config_rows = compare.config_rows(runs)
    together = grids.comparison_grids(runs, image_data, options.grid_size, thumbnails)
    epochs = grids.epoch_grids(runs, image_data, options.grid_size, thumbnails)
    extremes = grids.extreme_grids(runs, image_data, thumbnails)
    drawn = curves.plots(runs)
    found_fronts = fronts.fronts(groups[0]) if groups else []
    front_plots = [fronts.plot(found_fronts)] if found_fronts else []
    every_grid = [*together, *epochs, *(grid for two in extremes for grid in two)]
    script_data = {
        "runs": [{"name": run.name} for run in runs],
        "prefix": thumbnails.prefix,
        "side": thumbnails.side_px,
        "images": thumbnails.base64,
        "grids": {grid.id: grid.content for grid in every_grid},
        "plots": [asdict(plot) for plot in (*drawn, *front_plots)],
    }
    return _environment().get_template("page.html.j2").render(
        title=options.title,
        notes=notes,
        now=datetime.now(UTC),
        version=code_commit() or PACKAGE_VERSION,
        summary=verdicts.summary(run_verdicts, data, groups),
        runs=runs,
        data=data,
        image_data=image_data,
        groups=groups,
        verdicts=run_verdicts,
        forest=forest.intervals(run_verdicts),
        comparisons=verdicts.compare(runs, data, groups),
        metrics=[
            (group, tables.metrics_table(group, _left_out(runs, group) if rank == 0 else ()))
            for rank, group in enumerate(groups)
        ],
        apart=[(group, compare.why_apart(group, groups[0])) for group in groups[1:]],
        unmeasured=[run for run in runs if not run.measured(data)],
        losses=[tables.losses_rows(group) for group in groups],
        grids=together,
        epoch_grids=epochs,
        extremes=extremes,
        side_px=thumbnails.side_px,
        photographs=_photographs(runs, image_data),
        plots=drawn,
        front_plots=front_plots,
        over_seeds=seeds.over_seeds(groups[0]) if groups else None,
        front_comparisons=fronts.comparisons(found_fronts),
        thinned=curves.thinned(runs),
        training=tables.training(runs),
        config_rows=config_rows,
        how_to_measure=verdicts.how_to_measure,
        script_data=script_json(script_data),
    )  # fmt: skip


def script_json(data: Any) -> Markup:
    """Data as JSON that is safe inside a script element, whatever texts it contains."""
    return Markup(json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(UNSAFE))


def read_notes(file: Path) -> list[Block]:
    """Plain text to headings (lines that begin with '# ') and paragraphs (separated by blank lines).

    Raises UserError if the file cannot be read as text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"notes={file}", str(error.strerror), "name a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"notes={file}", "not UTF-8 text", "name a text file") from None
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
        raise UserError(f"out={out}", "is a folder", f"name a file, such as {out / 'report.html'}")


def _chosen(flag: str, name: str | None, runs: Sequence[Run]) -> str | None:
    known = sorted({data for run in runs for data in run.evaluations})
    if name is not None and name not in known:
        fix = f"use one of {', '.join(known)}" if known else "evaluate the runs first"
        raise UserError(f"{flag}={name}", "no run has an evaluation of that name", fix)
    return name


def _largest_grid(runs: Sequence[Run], data: str | None, images: int) -> int:
    kept = (sum(photo.picture for photo in one.images) for run in runs for one in run.measured(data))
    return min(images, max(kept, default=0))


def _photographs(runs: Sequence[Run], data: str | None) -> list[int]:
    """The numbers of photographs of the shown evaluations: one number if all agree."""
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
    """The text of a file of this folder."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
