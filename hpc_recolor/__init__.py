"""Train colorizers of gray photographs, from one laptop to a SLURM cluster.

    from hpc_recolor import Colorizer
    colorize = Colorizer.load()
    colorize("photo.jpg")

In a notebook this shows the photograph in color. `Colorizer`, `evaluate_run`, `load_config` and `train_run` are what
other programs may rely on; each is imported when it is first used, so that importing this package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_recolor.config_file import load_config
    from hpc_recolor.evaluation.colorizer import Colorizer
    from hpc_recolor.evaluation.evaluate_run import evaluate_run
    from hpc_recolor.training.train_run import train_run

__version__ = "0.1.0"

__all__ = ["Colorizer", "__version__", "evaluate_run", "load_config", "train_run"]

_MODULES = {
    "Colorizer": "hpc_recolor.evaluation.colorizer",
    "evaluate_run": "hpc_recolor.evaluation.evaluate_run",
    "load_config": "hpc_recolor.config_file",
    "train_run": "hpc_recolor.training.train_run",
}


if not TYPE_CHECKING:  # type checkers then know the names above, and no others

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import_module("hpc_recolor.runtime.process").wait_without_spinning()
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
