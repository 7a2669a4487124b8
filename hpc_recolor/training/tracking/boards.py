"""Where a run's numbers and pictures are shown while it trains: TensorBoard, and Weights & Biases if asked for."""

import sys
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import UserError


class Board(Protocol):
    """Shows numbers and pictures over images seen."""

    def numbers(self, values: Mapping[str, float], images_seen: int) -> None: ...

    def picture(self, name: str, picture: Image.Image, images_seen: int) -> None: ...

    def close(self) -> None: ...


def open_boards(run: RunFolder, config: Config, images_seen: int) -> list[Board]:
    """The boards of a config. Raises UserError if one is asked for and cannot be had."""
    boards: list[Board] = []
    if config.tracking.wandb:
        boards.append(Wandb(run, config, config.tracking.wandb))
    if config.tracking.tensorboard:
        boards.append(TensorBoard(run, images_seen))
    return boards


class TensorBoard:
    """Event files in the run folder's logs/. What was shown of later images than those seen is taken back."""

    def __init__(self, run: RunFolder, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.logs), purge_step=images_seen + 1)

    def numbers(self, values: Mapping[str, float], images_seen: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, images_seen)

    def picture(self, name: str, picture: Image.Image, images_seen: int) -> None:
        self.writer.add_image(name, np.asarray(picture), images_seen, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run at Weights & Biases, the same one after a requeue. WANDB_MODE and the like decide where it goes.

    Its x axis is images seen; its own steps only ever grow, while a run that goes on from a checkpoint steps back.
    """

    def __init__(self, run: RunFolder, config: Config, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"tracking.wandb={project}: {error}; pip install wandb, or leave the key out") from None
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
                f"tracking.wandb={project}: W&B does not start ({error}); run `wandb login`, or set WANDB_MODE=offline "
                "and `wandb sync` later, or leave the key out"
            ) from None
        self.run.define_metric("images_seen")
        self.run.define_metric("*", step_metric="images_seen")
        self.to_picture = wandb.Image

    def numbers(self, values: Mapping[str, float], images_seen: int) -> None:
        self.run.log({"images_seen": images_seen, **values})

    def picture(self, name: str, picture: Image.Image, images_seen: int) -> None:
        self.run.log({"images_seen": images_seen, name: self.to_picture(picture)})

    def close(self) -> None:
        try:
            self.run.finish()
        except Exception as error:  # its process may have got the signal that ends ours; the run must end well without
            print(f"W&B did not end well ({error}); `wandb sync` sends what is in the logs folder", file=sys.stderr)


def _run_id(run: RunFolder) -> str:
    """The id that the run got when it first started: in a file beside its logs."""
    file = run.logs / "wandb_id"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex[:12].encode())
    return file.read_text().strip()
