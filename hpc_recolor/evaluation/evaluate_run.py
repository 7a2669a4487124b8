"""`hpc_recolor.evaluate_run`: an evaluation in this process, from Python."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from hpc_recolor.evaluation.evaluation import EvaluationOptions, evaluate
from hpc_recolor.evaluation.results import Evaluation
from hpc_recolor.models.weights_package import COLORIZER


def evaluate_run(
    run: str | PathLike[str] = COLORIZER,
    *,
    data: str | PathLike[str] | None = None,
    epochs: Sequence[int] = (),
    vividness: Sequence[float] = (),
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int = 1,
) -> list[Evaluation]:
    """Measure a run's checkpoints on photographs that it was not trained on, and write the results into its folder.

        (evaluation,) = evaluate_run("runs/quickstart")
        evaluation.rows["model"]["ciede2000"], evaluation.rows["gray"]["ciede2000"]

    run: a run folder, or a file that `checkpoint export` wrote; data: photographs other than the run's own test split;
    epochs: of the checkpoints, by default the newest; vividness: settings of `colorize --vividness`, measured beside
    the colors themselves; out: folder for the results; device: "auto", "cpu" or "cuda"; threads: CPU threads.
    Returns one evaluation a checkpoint; those measured already are read. Raises UserError, with nothing written, if
    run, checkpoints or photographs do not fit.
    """
    options = EvaluationOptions(
        epochs=tuple(epochs),
        data=None if data is None else Path(data),
        vividness=tuple(vividness),
        out=None if out is None else Path(out),
    )
    return evaluate([Path(run)], options, device, threads, printed=False)
