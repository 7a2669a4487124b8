"""Checks of a run before anything slow: no torch is imported, no process group joined, no image opened."""

import os
import shutil
from pathlib import Path

from hpc_recolor.config import Config, check_ranks
from hpc_recolor.data.adoption import check_given, with_set_options
from hpc_recolor.data.inputs import check_inputs
from hpc_recolor.models.weights_package import start_of, weights_file
from hpc_recolor.run_folder.folder import RunFolder, find_run, with_recorded_accumulate
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config


def check(config: Config, ranks: int) -> tuple[Config, RunFolder]:
    """The config as it will be trained, completed by its data set and by what an earlier start has found, and its run
    folder, which may not exist yet. Writes nothing.

    Raises UserError if this many ranks cannot share a batch, if data or weights to start from are missing, if the
    config contradicts its data set or the DeepSpeed file, or if the run folder belongs to something else.
    """
    check_ranks(config, ranks)
    check_inputs(config.data)
    adopted = with_set_options(config)
    _check_is_utf8(config.run.folder)
    run = RunFolder(config.run.folder / config.run.name)
    if not run.config.is_file():  # earlier versions began runs whose config contradicts their data set
        check_given(config, adopted)
    config = with_recorded_accumulate(adopted, run)
    starts_from = start_of(config.train)
    if (config.model.generator == "backbone_unet" and not starts_from) or config.loss.perceptual_weight:
        weights_file(config.model)
    deepspeed_config(config, ranks)
    run = find_run(config)
    check_ranks(config, ranks)  # again, by what the run has recorded
    return config, run


def check_compiler(config: Config) -> None:
    """Raises UserError if networks are to be compiled on this machine and it has no compiler.

    torch.compile needs g++, or what CXX names, on CPUs; on GPUs Triton needs gcc, clang or what CC names.
    """
    names = [os.environ.get("CXX", "g++")]
    if config.train.device != "cpu":
        names += [os.environ.get("CC", "gcc"), "clang"]
    if config.train.compile and not any(map(shutil.which, names)):
        problem = f"no compiler on this machine ({', '.join(names)})"
        raise UserError("train.compile=true", problem, "install g++, or set train.compile=false")


def _check_is_utf8(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"run.folder={folder}", "is not UTF-8, which TensorBoard requires", "name another") from None
