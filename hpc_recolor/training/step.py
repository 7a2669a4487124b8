"""One step of pix2pix (arXiv:1611.07004): the discriminator learns, then the generator against the updated one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpc_recolor.config import LossConfig
from hpc_recolor.training.engine.engine import Engine, Engines
from hpc_recolor.training.reconstruction import reconstruction_loss
from recolor_kernels import discriminator_loss, generator_loss, l1_loss, patch_loss


class StepLosses(NamedTuple):
    """Losses of one step on this rank, before its updates: 0-dimensional tensors on the device, or floats once read.

    discriminator: mean of its losses on real and generated pairs. generator: l1_weight x reconstruction + adversarial.
    l1: mean absolute error in the target's range of [-1, 1], whatever loss.reconstruction is. adversarial: the
    generator's loss on the discriminator's logits.
    """

    discriminator: Any
    generator: Any
    l1: Any
    adversarial: Any


def gan_step(engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig, accumulate: int = 1) -> StepLosses:
    """Update both networks on one batch: condition (N,1,H,W), target (N,C,H,W), floats in [-1, 1], on the device.

    All ranks call it together, each with its share of the batch. accumulate: number of microbatches that N is split
    into, a divisor of N; they are computed one after the other, and the update is that of their mean loss. A network
    does not learn if its loss or gradient is not finite on any rank, nor does the generator after a discriminator that
    did not: see Engine.skipped. Statistics change all the same; Engines.statistics has kept those before.
    """
    engines.statistics.keep()
    if loss.adversarial == "none":
        engines.discriminator.skipped.zero_()
    if accumulate == 1:
        prediction, logits = _predict(engines, condition)
        discriminator = discriminator_step(engines.discriminator, condition, target, prediction.detach(), loss)
        return StepLosses(discriminator, *generator_step(engines, condition, target, prediction, loss, logits))
    return _accumulated_step(engines, condition, target, loss, accumulate)


def discriminator_only_step(
    engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig, accumulate: int = 1
) -> StepLosses:
    """Update the discriminator alone on one batch, colored by the generator as it is. Arguments as of `gan_step`."""
    engines.statistics.keep()
    engines.generator.skipped.zero_()
    losses, l1 = [], []
    for some_condition, some_target in zip(condition.chunk(accumulate), target.chunk(accumulate), strict=True):
        prediction = _predict_without_gradients(engines.generator, some_condition)
        losses.append(discriminator_step(engines.discriminator, some_condition, some_target, prediction, loss))
        l1.append(l1_loss(prediction, some_target))
    none = torch.zeros_like(l1[0])
    return StepLosses(torch.stack(losses).mean(), none, torch.stack(l1).mean(), none)


def _accumulated_step(
    engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig, accumulate: int
) -> StepLosses:
    microbatches = list(zip(condition.chunk(accumulate), target.chunk(accumulate), strict=True))
    random_states, of_discriminator, of_generator = [], [], []
    for some_condition, some_target in microbatches:
        random_states.append(_random_state(condition.device))
        prediction = _predict_without_gradients(engines.generator, some_condition)
        of_discriminator.append(
            discriminator_step(engines.discriminator, some_condition, some_target, prediction, loss)
        )
    for (some_condition, some_target), state in zip(microbatches, random_states, strict=True):
        _set_random_state(condition.device, state)  # the same dropout as in the prediction that the discriminator saw
        prediction, logits = _predict(engines, some_condition)
        of_generator.append(generator_step(engines, some_condition, some_target, prediction, loss, logits))
    rows = [(one, *others) for one, others in zip(of_discriminator, of_generator, strict=True)]
    return StepLosses(*(torch.stack(values).mean() for values in zip(*rows, strict=True)))


def discriminator_step(
    engine: Engine, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig
) -> Tensor:
    """Update the discriminator on one (micro)batch of real and generated pairs, each with half the weight.

    condition: (N,1,H,W). target: the real images (N,C,H,W). prediction: the generated ones (N,C,H,W), detached. All
    are floats in [-1, 1] on the device. The weights change at the last microbatch of a step; a loss that is not finite
    on any rank changes nothing and sets engine.skipped.

    Returns the detached loss (), half of loss.adversarial's criterion on real logits plus half on generated ones, as in
    pix2pix (arXiv:1611.07004, section 3.3: the objective is halved to slow the discriminator). 0, without an update, if
    loss.adversarial is "none".
    """
    if loss.adversarial == "none":
        return prediction.new_zeros(())
    on_fake, on_real = engine(condition, prediction), engine(condition, target)
    total = discriminator_loss(on_real, on_fake, loss.adversarial)
    engine.backward(poison_with_nan(total, ~torch.isfinite(total), engine.gate))
    engine.step()
    return total.detach()


def generator_step(
    engines: Engines,
    condition: Tensor,
    target: Tensor,
    prediction: Tensor,
    loss: LossConfig,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Update the generator on one (micro)batch, through a new forward pass of the discriminator, which is frozen.

    condition: (N,1,H,W). target: (N,C,H,W). prediction: engines.generator(condition) with its graph, (N,C,H,W). All are
    floats in [-1, 1] on the device. logits: that the prediction is decoded from, (N,K,h,w), if it is. The weights
    change at the last microbatch of a step; nothing changes, and engines.generator.skipped is set, if the loss is not
    finite on any rank or the discriminator was skipped.

    Returns detached (total, L1, adversarial), each (): total = loss.l1_weight x reconstruction + adversarial, with
    labels of real images for generated ones, + loss.perceptual_weight x perceptual. With L1 and nothing perceptual it
    is the objective of pix2pix (arXiv:1611.07004, equation 4). Without an adversarial loss, the last is 0.
    """
    if loss.adversarial == "none":
        total, l1 = _weighted_reconstruction(engines, prediction, target, loss, logits)
        total = _with_perceptual(total, engines, condition, prediction, target, loss)
        engines.generator.backward(poison_with_nan(total, ~torch.isfinite(total), engines.generator.gate))
        engines.generator.step()
        return total.detach(), l1, torch.zeros_like(l1)
    discriminator = engines.discriminator
    discriminator.module.requires_grad_(False)
    verdict = discriminator.frozen_forward(condition, prediction)
    if loss.reconstruction == "l1":
        total, l1, adversarial = generator_loss(prediction, target, verdict, loss.l1_weight, loss.adversarial)
    else:
        total, l1 = _weighted_reconstruction(engines, prediction, target, loss, logits)
        adversarial = patch_loss(verdict, True, loss.adversarial)
        total = total + adversarial
    total = _with_perceptual(total, engines, condition, prediction, target, loss)
    bad = ~torch.isfinite(total) | discriminator.skipped.bool()
    engines.generator.backward(poison_with_nan(total, bad, engines.generator.gate))
    engines.generator.step()
    discriminator.module.requires_grad_(True)
    return total.detach(), l1, adversarial.detach()


def _weighted_reconstruction(
    engines: Engines, prediction: Tensor, target: Tensor, loss: LossConfig, logits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """loss.l1_weight x reconstruction, (), and L1, (), detached."""
    if loss.reconstruction == "bins":
        assert engines.bins is not None
        assert logits is not None
        reconstruction = engines.bins.cross_entropy(logits, target)
    else:
        reconstruction = reconstruction_loss(prediction, target, loss.reconstruction)
    l1 = reconstruction if loss.reconstruction == "l1" else l1_loss(prediction.detach(), target)
    return loss.l1_weight * reconstruction, l1.detach()


def _with_perceptual(
    total: Tensor, engines: Engines, condition: Tensor, prediction: Tensor, target: Tensor, loss: LossConfig
) -> Tensor:
    """A loss () plus loss.perceptual_weight x perceptual loss, if there is one."""
    if engines.perceptual is None:
        return total
    perceptual: Tensor = engines.perceptual(condition, prediction, target)
    return total + loss.perceptual_weight * perceptual


def poison_with_nan(loss: Tensor, bad: Tensor, gate: Tensor) -> Tensor:
    """The loss (); where `bad`, a boolean tensor (), is true, or `gate`, Engine.gate, is NaN, one whose gradients are
    NaN everywhere.

    Every rank then finds NaN when gradients are averaged: no further communication, no wait for the device.
    """
    return loss * torch.where(bad, torch.nan, gate)


def _predict(engines: Engines, condition: Tensor) -> tuple[Tensor, Tensor | None]:
    """The generator's prediction with its graph, and the logits that it is decoded from, if it is."""
    if engines.bins is None:
        return engines.generator(condition), None
    logits = engines.generator(condition, as_logits=True)
    return engines.generator.module.decode(logits, condition.shape[-2:]), logits


def _predict_without_gradients(generator: Engine, condition: Tensor) -> Tensor:
    """The generator's prediction, without a graph; BatchNorm's statistics stay as they were."""
    before = [buffer.clone() for buffer in generator.module.buffers()]
    with torch.no_grad():
        prediction = generator.frozen_forward(condition)
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
