"""Boards that show a run's scalars and images while it trains: TensorBoard, and Weights & Biases if configured."""

import sys
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hpc_recolor.config import Config, policies
from hpc_recolor.config_file import leaves, to_yaml
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped

# Scalars beside the hyperparameters in TensorBoard's table.
HEADLINES = ("held_out/ciede2000", "held_out/colorfulness", "train/l1", "train/images_per_s")


class Board(Protocol):
    """Shows scalars and images over images seen."""

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Add a point to each named curve."""

    def log_image(self, name: str, image: Image.Image, images_seen: int) -> None:
        """Add an image to a named series."""

    def close(self) -> None:
        """Flush and release what is open."""


def open_boards(run: RunFolder, config: Config, images_seen: int) -> list[Board]:
    """The boards of a config. Raises UserError if a configured one is not available."""
    boards: list[Board] = []
    if config.tracking.wandb:
        boards.append(Wandb(run, config, config.tracking.wandb))
    if config.tracking.tensorboard:
        boards.append(TensorBoard(run, config, images_seen))
    return boards


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """What is learned from, by `section.key`, as TensorBoard's table of hyperparameters takes it."""
    kept = {key: value for key, value in leaves(config.model_dump(mode="json")) if policies()[key].recipe}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in kept.items()}


class TensorBoard:
    """Event files in the run folder's logs/. Points after `images_seen` are purged: a resumed run logs them again.

    Begins with the config, as text, and as hyperparameters beside HEADLINES.
    """

    def __init__(self, run: RunFolder, config: Config, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.logs), purge_step=images_seen + 1)
        self.writer.add_text("config", f"```yaml\n{to_yaml(config)}```", images_seen)
        _add_hyperparameters(self.writer, config)

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Add a point to each named curve."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, images_seen)

    def log_image(self, name: str, image: Image.Image, images_seen: int) -> None:
        """Add an image to a named series."""
        self.writer.add_image(name, np.asarray(image), images_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


def _add_hyperparameters(writer: Any, config: Config) -> None:
    """As SummaryWriter.add_hparams does, but in the run's own event file, and without points for the metrics."""
    from torch.utils.tensorboard import summary

    to_summaries: Any = summary.hparams
    # A path need not be UTF-8, as TensorBoard's texts are.
    values = {key: escaped(one) if isinstance(one, str) else one for key, one in hyperparameters(config).items()}
    for one in to_summaries(values, dict.fromkeys(HEADLINES)):
        writer.file_writer.add_summary(one)


class Wandb:
    """A run at Weights & Biases, the same one after a requeue. WANDB_MODE and the like decide where it is sent.

    The x axis is images seen: W&B's own steps only increase, while a run that resumes from a checkpoint steps back.
    """

    def __init__(self, run: RunFolder, config: Config, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"tracking.wandb={project}", str(error), "pip install wandb, or remove the key") from None
        run.logs.mkdir(exist_ok=True)
        try:
            self.run = wandb.init(
                project=project,
                name=run.path.name,
                id=_run_id(run),
                resume="allow",
                dir=str(run.logs),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracking.wandb={project}",
                f"W&B does not start ({error})",
                "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later, or remove the key",
            ) from None
        self.run.define_metric("images_seen")
        self.run.define_metric("*", step_metric="images_seen")
        self.to_wandb_image = wandb.Image

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Add a point to each named curve."""
        self.run.log({"images_seen": images_seen, **values})

    def log_image(self, name: str, image: Image.Image, images_seen: int) -> None:
        """Add an image to a named series."""
        self.run.log({"images_seen": images_seen, name: self.to_wandb_image(image)})

    def close(self) -> None:
        """Finish the W&B run; a failure is printed, and does not fail training."""
        try:
            self.run.finish()
        except Exception as error:  # W&B's process may have received the signal that stops ours
            print(f"W&B did not finish ({error}); `wandb sync` uploads what is in the logs folder", file=sys.stderr)


def _run_id(run: RunFolder) -> str:
    """The W&B id that the run got when it first started, from a file in its logs folder."""
    file = run.logs / "wandb_id"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex[:12].encode())
    return file.read_text().strip()
