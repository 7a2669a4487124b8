"""One step of pix2pix: the discriminator learns, then the generator against the discriminator as it now is."""

from typing import Any, NamedTuple

from torch import Tensor

from hpc_recolor.config import LossConfig
from hpc_recolor.training.engine import Engines
from recolor_kernels import l1_loss, patch_loss


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
    on_fake = patch_loss(engine(condition, prediction), real=False, criterion=loss.adversarial)
    on_real = patch_loss(engine(condition, target), real=True, criterion=loss.adversarial)
    total = 0.5 * (on_real + on_fake)
    engine.backward(total)
    engine.step()
    return total.detach()


def generator_step(
    engines: Engines, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """l1_weight x L1 + adversarial, through a fresh forward of the discriminator, which does not learn from it."""
    judge = engines.discriminator.module  # through its engine, DeepSpeed would take this for the judge's own step
    judge.requires_grad_(False)
    adversarial = patch_loss(judge(condition, prediction), real=True, criterion=loss.adversarial)
    l1 = l1_loss(prediction, target)
    total = loss.l1_weight * l1 + adversarial
    engines.generator.backward(total)
    engines.generator.step()
    judge.requires_grad_(True)
    return total.detach(), l1.detach(), adversarial.detach()


def learning_rate(lr: float, images_seen: int, images_total: int, constant: float) -> float:
    """Constant for a share of the run, then linear to zero, as pix2pix does; the clock is images seen."""
    left = 1 - images_seen / images_total
    return lr * min(1.0, max(0.0, left) / (1 - constant)) if constant < 1 else lr
