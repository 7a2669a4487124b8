"""`python -m hpc_recolor.report`: one page that compares runs."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError

app = cli.command("report")


@app.default
def report(
    *runs: Annotated[Path, Parameter(help="Run folders, trained and evaluated; in the order in which to show them.")],
    out: Annotated[Path, Parameter(help="The page, as one HTML file that opens without a network.")],
    data: Annotated[str, Parameter(help="Evaluation whose numbers are compared; by default the one most runs have.")]
    | None = None,
    pictures: Annotated[str, Parameter(help="Evaluation whose images are shown; by default that of the numbers.")]
    | None = None,
    images: Annotated[
        int, Parameter(help="Largest number of photographs in a grid [photographs].", validator=Number(gte=0))
    ] = 24,
    title: Annotated[str, Parameter(help="Title of the page.")] = "Training runs compared",
    notes: Annotated[
        Path,
        Parameter(help="Text file shown at the top: blank lines separate paragraphs, a line '# ...' is a heading."),
    ]
    | None = None,
) -> None:
    """Compare runs by number and by eye, on one page.

    Reads what training and `evaluate` wrote into the run folders; needs neither a network nor a GPU.
    """
    if not runs:
        raise UserError("RUN", "missing", "name at least one run folder")
    from hpc_recolor.reporting.page import (  # after the parsing: it imports jinja2 and Pillow
        ReportOptions,
        write_report,
    )

    options = ReportOptions(data=data, image_data=pictures, grid_size=images, title=title, notes=notes)
    size_bytes = write_report(list(runs), out, options)
    print(f"{out} ({size_bytes / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(cli.run(app))
