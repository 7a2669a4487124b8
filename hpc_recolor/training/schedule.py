"""What happens when in a run. Pure functions; the clock is images seen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from hpc_recolor.config import Config, LossConfig, TrainConfig

# How often a run is validated by default: share of the time at most, and time between two validations at least [s].
VALIDATION_SHARE = 0.03
VALIDATION_EVERY_S = 30.0


@dataclass(frozen=True)
class RunLength:
    """How long a run is [images]. per_epoch: photographs to learn from; per_step: the batch of all ranks."""

    total: int
    per_epoch: int
    per_step: int

    @classmethod
    def of(cls, config: Config, photographs: int) -> "RunLength":
        """The length of a run on this many photographs."""
        epochs, batch_size = config.train.epochs, config.train.batch_size
        return cls(images_total(epochs, photographs, batch_size), per_epoch=photographs, per_step=batch_size)


def images_total(epochs: int, photographs: int, batch_size: int) -> int:
    """Images in a run of whole batches. The last batch continues into the next shuffle, so every photograph is seen
    `epochs` times or more."""
    return -(-epochs * photographs // batch_size) * batch_size


def learning_rate(lr: float, images_seen: int, total: int, constant: float) -> float:
    """The learning rate after `images_seen` of `total` images, as in pix2pix (arXiv:1611.07004): `lr` for the share
    `constant` of the run [0 to 1], then linear to zero."""
    left = 1 - images_seen / total
    return lr * min(1.0, max(0.0, left) / (1 - constant)) if constant < 1 else lr


class Phase(Enum):
    """Which networks learn in a step. An adversarial loss that enters late costs less (DeOldify's NoGAN): first the
    generator learns alone, then the discriminator, on what the generator makes by then, and then both."""

    GENERATOR = "generator"
    DISCRIMINATOR = "discriminator"
    BOTH = "both"


def phase_at(loss: LossConfig, images_seen: int) -> Phase:
    """The phase of the step after `images_seen` images."""
    if loss.adversarial == "none" or images_seen < loss.discriminator_from:
        return Phase.GENERATOR
    return Phase.DISCRIMINATOR if images_seen < loss.adversarial_from else Phase.BOTH


def adversarial_scale(config: Config, images_seen: int) -> float:
    """Factor on both learning rates: train.adversarial_lr_scale once both networks learn."""
    return config.train.adversarial_lr_scale if phase_at(config.loss, images_seen) is Phase.BOTH else 1.0


def backbone_scale(train: TrainConfig, images_seen: int) -> float:
    """Factor on the learning rate of a pretrained backbone: 0 until train.freeze_backbone_images were seen."""
    return train.backbone_lr_scale if images_seen >= train.freeze_backbone_images else 0.0


def is_due(every_images: int, images_seen: int, length: RunLength) -> bool:
    """Whether the last step passed a multiple of `every_images`, unless that is 0, or ended the run."""
    if images_seen >= length.total or not every_images:
        return images_seen >= length.total
    return images_seen // every_images > (images_seen - length.per_step) // every_images


def validation_interval(images_per_s: float, validation_s: float) -> int:
    """Images between two validations, each of which takes `validation_s`, in a run at this speed [images/s].

    The next 1, 2 or 5 times a power of ten: validations then take VALIDATION_SHARE of the time at most, and are
    VALIDATION_EVERY_S apart at least.
    """
    least = images_per_s * max(VALIDATION_EVERY_S, validation_s / VALIDATION_SHARE)
    power = 10 ** math.floor(math.log10(max(1.0, least)))
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= least)


def ends_first_epoch(images_seen: int, length: RunLength) -> bool:
    """Whether the last step ended the first epoch."""
    return images_seen - length.per_step < length.per_epoch <= images_seen


def finished_snapshot(snapshots: Iterable[int], images_seen: int, length: RunLength) -> int | None:
    """The epoch of `snapshots` that the last step finished, the last if several; None if it finished none."""
    before = images_seen - length.per_step
    finished = [epoch for epoch in snapshots if before < epoch * length.per_epoch <= images_seen]
    return max(finished, default=None)
