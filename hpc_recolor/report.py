"""`python -m hpc_recolor.report`: one page that compares runs."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError

app = cli.command("hpc_recolor.report")


@app.default
def report(
    *runs: Annotated[Path, Parameter(help="Run folders, trained and evaluated; in the order they shall be shown.")],
    out: Annotated[Path, Parameter(help="The page, as one HTML file that opens without a network.")],
    data: Annotated[str, Parameter(help="Evaluation whose numbers are compared; by default the one most runs have.")]
    | None = None,
    pictures: Annotated[str, Parameter(help="Evaluation whose pictures are shown; by default that of the numbers.")]
    | None = None,
    images: Annotated[
        int, Parameter(help="Photographs in a grid at most [photographs].", validator=Number(gte=0))
    ] = 24,
    title: Annotated[str, Parameter(help="Title of the page.")] = "Training runs compared",
    notes: Annotated[
        Path,
        Parameter(help="Text file shown at the top: blank lines part paragraphs, a line '# ...' is a heading."),
    ]
    | None = None,
) -> None:
    """Compare runs by number and by eye, on one page.

    Reads what training and `evaluate` left in the run folders, and needs neither a network nor a GPU.
    """
    if not runs:
        raise UserError("RUN is missing: name at least one run folder")
    from hpc_recolor.reporting.page import Wishes, write_report  # after the parsing: it imports jinja2 and Pillow

    wishes = Wishes(data=data, pictures=pictures, images=images, title=title, notes=notes)
    size_bytes = write_report(list(runs), out, wishes)
    print(f"{out} ({size_bytes / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(cli.run(app))
