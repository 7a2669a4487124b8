"""`python -m hpc_recolor.colorize`: color photographs with a trained run."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped

app = cli.command("colorize")


@app.default
def colorize(
    *photos: Annotated[Path, Parameter(help="Photographs, or folders of them; up to 100 megapixels, gray or color.")],
    run: Annotated[Path, cli.RUN_OR_FILE] = COLORIZER,
    out: Annotated[Path, Parameter(help="Folder for the colored copies, as PNG.")],
    vividness: Annotated[
        float | None,
        Parameter(
            help="How colorful the colors are [0 to 10; 0: gray, 1: as the network predicts them, 2: about as "
            "photographs are]; by default the one chosen on validation photographs.",
            validator=cli.VIVIDNESS,
        ),
    ] = None,
) -> None:
    """Color photographs, keeping their luminance at full resolution.

    Writes OUT/NAME.png for each photograph, with 8 bits a channel. One that cannot be read is skipped and named.
    """
    if not photos:
        raise UserError("PHOTO", "missing", "name at least one photograph or folder")
    from hpc_recolor.evaluation.colorizer import colorize_files  # after the parsing: it imports torch

    skipped = colorize_files(
        list(photos), run, out, on_written=lambda file: print(escaped(str(file))), vividness=vividness
    )
    if skipped:
        problem = f"{len(skipped)} of the photographs cannot be read and were skipped: {', '.join(skipped)}"
        raise UserError("PHOTO", problem, "replace or remove them")


if __name__ == "__main__":
    sys.exit(cli.run(app))
