"""`python -m hpc_recolor.train`: train a colorizer on photographs or shards."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.runtime.distributed import is_main_process, world_size
from hpc_recolor.runtime.output import lossy_output
from hpc_recolor.runtime.progress import show_phase
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training import preflight

app = cli.command("train", distributed=True)


@app.default
def train(
    *,
    config: Annotated[Path | None, Parameter(help=cli.CONFIG_HELP)] = None,
    print_config: Annotated[
        bool, Parameter(name="--print-config", negative=(), help="Print the resulting config as YAML and stop.")
    ] = False,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Train a colorizer on a folder of photographs, or on shards that `prepare` wrote.

    The same command resumes from the newest checkpoint. On several ranks:
    torchrun --nproc_per_node 2 -m hpc_recolor.train ...

    On SIGUSR2, SIGTERM or Ctrl-C all ranks finish their step, save and exit. Exit codes: 0 finished, 1 a rank failed,
    2 bad input, 3 losses stayed non-finite, 75 stopped and saved.
    """
    resolved = cli.load(config, flags)
    if print_config:
        cli.print_config(resolved)
        return
    with StopRequest(until_exit=True) as request, lossy_output():
        if world_size() == 1:  # several ranks check it together, once connected
            preflight.check(resolved, 1)
        with show_phase("importing PyTorch", shown=is_main_process()):
            from hpc_recolor.training import trainer  # after parsing and checks
            from hpc_recolor.training.time_ledger import process_age_s

        trainer.train(resolved, request, process_age_s())


if __name__ == "__main__":
    sys.exit(cli.run(app))
