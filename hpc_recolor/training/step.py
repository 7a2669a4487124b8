"""One step of pix2pix: the discriminator learns, then the generator against the discriminator as it now is."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpc_recolor.config import LossConfig
from hpc_recolor.training.engine.deepspeed_engine import Engine, Engines
from recolor_kernels import discriminator_loss, generator_loss, l1_loss


class StepLosses(NamedTuple):
    """Losses of one step on this rank, before its updates: 0-dimensional tensors on the device, not yet read
    (or floats, once read)."""

    discriminator: Any
    generator: Any
    l1: Any
    adversarial: Any


def gan_step(engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig, parts: int = 1) -> StepLosses:
    """Update both networks on one batch: condition (N,1,H,W), target (N,C,H,W), both in [-1, 1].

    parts: micro-batches that N is computed in, one after the other; the update is that of their mean loss. Where a
    loss or gradient is not finite on any rank, that network does not learn, nor does the generator after the
    discriminator; see Engine.skipped.
    """
    for engine in engines:
        engine.keep_buffers()
    if parts == 1:
        prediction = engines.generator(condition)
        discriminator = discriminator_step(engines.discriminator, condition, target, prediction.detach(), loss)
        return StepLosses(discriminator, *generator_step(engines, condition, target, prediction, loss))
    pieces = list(zip(condition.chunk(parts), target.chunk(parts), strict=True))
    states = []
    on_discriminator = []
    for some_condition, some_target in pieces:
        states.append(_random_state(condition.device))
        prediction = _predict_without_trace(engines.generator, some_condition)
        on_discriminator.append(
            discriminator_step(engines.discriminator, some_condition, some_target, prediction, loss)
        )
    on_generator = []
    for (some_condition, some_target), state in zip(pieces, states, strict=True):
        _set_random_state(condition.device, state)  # the prediction that the discriminator saw, drop by drop
        prediction = engines.generator(some_condition)
        on_generator.append(generator_step(engines, some_condition, some_target, prediction, loss))
    rows = [(one, *others) for one, others in zip(on_discriminator, on_generator, strict=True)]
    return StepLosses(*(torch.stack(values).mean() for values in zip(*rows, strict=True)))


def discriminator_step(
    engine: Engine, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig
) -> Tensor:
    """Half the loss on real pairs plus half the loss on generated ones; `prediction` carries no gradient.

    Without an adversary it learns nothing, and the loss is 0.
    """
    if loss.adversarial == "none":
        return prediction.new_zeros(())
    on_fake, on_real = engine(condition, prediction), engine(condition, target)
    total = discriminator_loss(on_real, on_fake, loss.adversarial)
    engine.backward(_spoiled(total, ~torch.isfinite(total)))
    engine.step()
    return total.detach()


def generator_step(
    engines: Engines, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """l1_weight x L1 + adversarial, through a fresh forward of the discriminator, which does not learn from it."""
    judge = engines.discriminator
    if loss.adversarial == "none":
        l1 = l1_loss(prediction, target)
        total = loss.l1_weight * l1
        engines.generator.backward(_spoiled(total, ~torch.isfinite(total)))
        engines.generator.step()
        return total.detach(), l1.detach(), torch.zeros_like(total)
    judge.module.requires_grad_(False)
    total, l1, adversarial = generator_loss(
        prediction, target, judge.judge(condition, prediction), loss.l1_weight, loss.adversarial
    )
    engines.generator.backward(_spoiled(total, ~torch.isfinite(total) | judge.skipped.bool()))
    engines.generator.step()
    judge.module.requires_grad_(True)
    return total.detach(), l1, adversarial


def _spoiled(loss: Tensor, bad: Tensor) -> Tensor:
    """The loss; where `bad`, one whose gradients are NaN everywhere, so that every rank comes to know of it when
    gradients are averaged, without a word more between ranks and without waiting for the device."""
    return loss * torch.where(bad, torch.nan, 1.0)


def _predict_without_trace(generator: Engine, condition: Tensor) -> Tensor:
    """What the generator will predict, without what gradients need; BatchNorm's statistics stay as they were."""
    before = [buffer.clone() for buffer in generator.module.buffers()]
    with torch.no_grad():
        prediction = generator.judge(condition)
        for buffer, value in zip(generator.module.buffers(), before, strict=True):
            buffer.copy_(value)
    return prediction


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
