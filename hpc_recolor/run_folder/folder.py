"""The run folder: the paths inside it, and which config may resume it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from hpc_recolor.config import OF_DATA_SET, Config, with_accumulate
from hpc_recolor.config_file import changed_keys, load_config, to_yaml
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError, cannot_write

GENERATOR_WEIGHTS = "generator.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder. `Path(run)`, and all that takes a path, takes it."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The run's config as YAML; a folder without it is not a run folder."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Losses and scores, see metrics_log.py."""
        return self.path / "metrics.jsonl"

    @property
    def time(self) -> Path:
        """What its starts spent their time on, see time_account.py."""
        return self.path / "time.json"

    @property
    def losses(self) -> Path:
        """Figure of the losses."""
        return self.path / "losses.png"

    @property
    def samples(self) -> Path:
        """Figures of held-out images during training."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """The committed checkpoints, see checkpoints.py."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """TensorBoard events and offline W&B runs."""
        return self.path / "logs"


def find_run(config: Config) -> RunFolder:
    """The run folder of a config: it does not exist yet, or holds the same run. Writes nothing.

    Raises UserError if it holds another run, or files of something else.
    """
    run = RunFolder(config.run.folder / config.run.name)
    if run.config.is_file():
        _check_same_run(run, config)
    elif run.path.exists() and (
        not run.path.is_dir() or any(not path.name.startswith(".") for path in run.path.iterdir())
    ):
        raise UserError(
            f"run.name={config.run.name}", f"{run.path} exists and is not a run folder", "give another run.name"
        )
    return run


def _check_same_run(run: RunFolder, config: Config) -> list[str]:
    """Raises UserError if the folder holds another run. Returns what it has recorded wrongly of the same one.

    A data set decides how its photographs became squares. Earlier versions recorded what the config said of that.
    """
    decided = tuple(f"data.{key}: " for key in OF_DATA_SET if config.data.shards)
    different = changed_keys(load_config(run.config, {}), config)
    corrected = [change for change in different if change.startswith(decided)]
    changes = [change for change in different if change not in corrected]
    if changes:
        raise UserError(
            f"run.name={config.run.name}",
            f"{run.path} holds another run ({'; '.join(changes)})",
            "give the same values to resume it, or another run.name, or remove the folder",
        )
    return corrected


def with_recorded_accumulate(config: Config, run: RunFolder) -> Config:
    """The config with the train.accumulate that the run needs to fit into memory, if its folder records a larger one.

    The run keeps it on any number of ranks: `check_ranks` refuses those whose share of a batch it does not divide.
    Without train.fit_memory it is unchanged. Raises UserError if config.yaml cannot be read.
    """
    if not config.train.fit_memory or not run.config.is_file():
        return config
    return with_accumulate(config, max(config.train.accumulate, load_config(run.config, {}).train.accumulate))


def record_accumulate(run: RunFolder, accumulate: int) -> None:
    """Set train.accumulate in the config.yaml of a run that has not seen an image yet, unless it has none.

    Raises UserError if it cannot be written.
    """
    if run.config.is_file():
        _write_config(run, with_accumulate(load_config(run.config, {}), accumulate))


def make_folder(run: RunFolder) -> None:
    """Create the run folder unless it exists. Raises UserError if that fails."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None


def claim(run: RunFolder, config: Config) -> None:
    """Make the run folder this config's, by writing config.yaml.

    Raises UserError if it cannot be written, or holds another run: one may have claimed it since `find_run`.
    """
    make_folder(run)
    corrected = _check_same_run(run, config) if run.config.is_file() else []
    _write_config(run, config)
    for change in corrected:
        print(f"{run.config}: corrected to what its data set was prepared with: {change}", file=sys.stderr)


def _write_config(run: RunFolder, config: Config) -> None:
    try:
        write_atomically(run.config, to_yaml(config).encode())
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: RunFolder, error: OSError) -> UserError:
    error.filename = str(run.path)
    return cannot_write(f"run.folder={run.path.parent}", error, "name a folder that is writable, with free space")


def read_config(file: Path, run: RunFolder) -> Config:
    """The config of a run that is to train, from a file in its folder. A run is the folder that it stands in: what the
    file says of that may be older than the last move. Raises UserError as `load_config` does."""
    config = load_config(file, {})
    if (config.run.folder / config.run.name).absolute() == run.path.absolute():
        return config
    return load_config(file, {"run": {"folder": str(run.path.parent), "name": run.path.name}})


def open_run(folder: Path) -> tuple[RunFolder, Config]:
    """An existing run folder and its config. Raises UserError if it is not a run folder."""
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(str(folder), "is not a run folder: it has no config.yaml", "name a folder that training wrote")
    return run, load_config(run.config, {})
