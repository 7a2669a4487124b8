"""`python -m hpc_recolor.evaluate`: measure checkpoints of runs on photographs that they were not trained on."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.models.weights_package import COLORIZER

app = cli.command("evaluate", distributed=True)

Run = Annotated[
    Path,
    Parameter(
        help="Run folders, or files that `checkpoint export` wrote; by default the colorizer in this package. The gray "
        "copy of the same photographs is measured once for all.",
        show_default=False,
    ),
]
Pictures = Annotated[
    int,
    Parameter(
        help="How many of the first images to keep, beside the best and worst twenty [images].", validator=Number(gte=0)
    ),
]
Vividness = Annotated[
    list[float] | None,
    Parameter(
        help="Also measure CIEDE2000 and colorfulness with colors as vivid as each of these [0 to 10], as "
        "`colorize --vividness` makes them.",
        validator=cli.VIVIDNESS,
    ),
]
Recognition = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Also measure how many photographs two ImageNet classifiers recognize as they do the originals, and the "
        "Frechet distance in their features; needs pip install 'hpc-recolor[recognition]'.",
    ),
]
Threads = Annotated[
    int,
    Parameter(
        help="CPU threads of each rank; more ranks are faster than more threads, and do not change the numbers "
        "[threads, 1 or more].",
        validator=Number(gte=1),
    ),
]


@app.default
def evaluate(
    *runs: Run,
    checkpoint: Annotated[
        list[int] | None, Parameter(help="Epochs whose checkpoints are measured; by default the newest checkpoint.")
    ] = None,
    data: Annotated[
        Path | None,
        Parameter(help="Data set that `prepare` wrote, or folder of photographs; by default the run's own test split."),
    ] = None,
    raw: Annotated[
        bool, Parameter(negative=(), help="Measure the weights of the last step, not their moving average.")
    ] = False,
    pictures: Pictures = 32,
    vividness: Vividness = None,
    out: Annotated[
        Path | None, Parameter(help="Folder for the results; by default the run folder, or runs/NAME for a file.")
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        Parameter(name="--lpips-weights", help="File with torchvision's AlexNet, to measure LPIPS; never downloaded."),
    ] = None,
    fid_weights: Annotated[
        Path | None,
        Parameter(
            name="--fid-weights", help="File with torch-fidelity's Inception-v3, to measure FID; never downloaded."
        ),
    ] = None,
    recognition: Recognition = False,
    threads: Threads = 1,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="Where to compute; auto takes a GPU if any.")
    ] = "auto",
) -> None:
    """Measure checkpoints of runs beside the gray copy and the mean color, and keep images for `report`.

    Writes RUN/evaluations/DATA/epoch-EEEE.json with the protocol, the losses, a row of means for each method, and the
    values of every photograph. Checkpoints that are measured already are skipped. Several ranks give the same numbers:
    torchrun --nproc_per_node 2 -m hpc_recolor.evaluate RUN
    """
    from hpc_recolor.evaluation import evaluation  # after the parsing: it imports torch

    options = evaluation.EvaluationOptions(
        epochs=tuple(checkpoint or ()),
        data=data,
        raw=raw,
        images_kept=pictures,
        lpips_weights=lpips_weights,
        fid_weights=fid_weights,
        recognition=recognition,
        vividness=tuple(vividness or ()),
        out=out,
    )
    evaluation.evaluate(runs or (COLORIZER,), options, device, threads)


if __name__ == "__main__":
    sys.exit(cli.run(app))
