"""One step of pix2pix: the discriminator learns, then the generator against the discriminator as it now is."""

from typing import Any, NamedTuple

from torch import Tensor

from hpc_recolor.config import LossConfig
from hpc_recolor.training.engine import Engines
from recolor_kernels import discriminator_loss, generator_loss


class StepLosses(NamedTuple):
    """Losses of one step on this rank, before its updates: 0-dimensional tensors on the device, not yet read
    (or floats, once read)."""

    discriminator: Any
    generator: Any
    l1: Any
    adversarial: Any


def gan_step(engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig) -> StepLosses:
    """Update both networks on one batch: condition (N,1,H,W), target (N,C,H,W), both in [-1, 1]."""
    prediction = engines.generator(condition)
    discriminator = discriminator_step(engines.discriminator, condition, target, prediction.detach(), loss)
    generator = generator_step(engines, condition, target, prediction, loss)
    return StepLosses(discriminator, *generator)


def discriminator_step(engine: Any, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig) -> Tensor:
    """Half the loss on real pairs plus half the loss on generated ones; `prediction` carries no gradient."""
    on_fake, on_real = engine(condition, prediction), engine(condition, target)
    total = discriminator_loss(on_real, on_fake, loss.adversarial)
    engine.backward(total)
    engine.step()
    return total.detach()


def generator_step(
    engines: Engines, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """l1_weight x L1 + adversarial, through a fresh forward of the discriminator, which does not learn from it."""
    judge = engines.discriminator.module  # through its engine, DeepSpeed would take this for the judge's own step
    judge.requires_grad_(False)
    total, l1, adversarial = generator_loss(
        prediction, target, judge(condition, prediction), loss.l1_weight, loss.adversarial
    )
    engines.generator.backward(total)
    engines.generator.step()
    judge.requires_grad_(True)
    return total.detach(), l1, adversarial


def learning_rate(lr: float, images_seen: int, images_total: int, constant: float) -> float:
    """Constant for a share of the run, then linear to zero, as pix2pix does; the clock is images seen."""
    left = 1 - images_seen / images_total
    return lr * min(1.0, max(0.0, left) / (1 - constant)) if constant < 1 else lr
