"""`hpc_recolor.train_run`: a training in this process, from Python."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from hpc_recolor.config import Config
from hpc_recolor.config_file import NOTHING, load_config
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training.trainer import train


def train_run(config: Config | str | PathLike[str], overrides: Mapping[str, Any] = NOTHING) -> RunFolder:
    """Train a run to its end, from its newest checkpoint if it has one. Returns its folder, which is used like a path.

        run = train_run("quickstart", {"data.photos": "photos", "train.epochs": 3})

    config, overrides: as for `load_config`, or its result. Prints and writes what `python -m hpc_recolor.train` does.
    An interrupt, as a notebook's stop button sends it, saves first.
    Raises UserError, with nothing written, if config, photographs or checkpoint do not fit; EarlyEndError, with the
    state saved, if it is interrupted, or if losses stay not finite.
    """
    with StopRequest() as request:
        return train(load_config(config, overrides), request)
