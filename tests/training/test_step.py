"""The engines' step against plain PyTorch's, and proof that the comparison sees what it is there to see."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import recolor_kernels
from benchmarks.plain_step import PlainStep
from hpc_recolor.config import GeneratorName, LossConfig
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training import step as step_module
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.engine.engine import Engines
from hpc_recolor.training.schedule import learning_rate
from hpc_recolor.training.step import gan_step
from tests.support import tolerances
from tests.support.workers import random_batch, small_config

STEPS = 5
DEFAULT_LOSS = LossConfig()


def twin_difference(
    world: World, generator: GeneratorName = "unet", loss: LossConfig = DEFAULT_LOSS, **train: Any
) -> tuple[float, float]:
    """After STEPS steps: worst difference of a parameter, and worst of Adam's moments relative to the tensor's largest.

    loss: of the engines' step; the plain one has pix2pix's. train: of the config's section. Adam's update hides the
    scale of a gradient; its moments show it.
    """
    model = {"width": 8, "dropout": 0.5, "generator": generator}
    config = small_config(model=model, train={"batch_size": 8, "device": "cpu", "threads": 1} | train)
    engines = build_engines(config, world)
    plain = PlainStep.beside(engines, config, world)
    for number in range(STEPS):
        condition, target = random_batch(number, config)
        torch.manual_seed(number)
        gan_step(engines, condition, target, loss)
        torch.manual_seed(number)
        plain(condition, target)
    parameter, moment = 0.0, 0.0
    twins = ((plain.generator, plain.generator_adam), (plain.discriminator, plain.discriminator_adam))
    for engine, (network, adam) in zip(engines, twins, strict=True):
        for ours, theirs in zip(engine.module.parameters(), network.parameters(), strict=True):
            parameter = max(parameter, float((ours - theirs).detach().abs().max()))
            for key in ("exp_avg", "exp_avg_sq"):
                expected = adam.state[theirs][key]
                difference = (engine.adam.state[ours][key] - expected).abs().max()
                moment = max(moment, float(difference / expected.abs().max()))
    return parameter, moment


def is_equal(difference: tuple[float, float]) -> bool:
    return difference[0] <= tolerances.TWIN_ABSOLUTE and difference[1] <= tolerances.TWIN_MOMENT_RELATIVE


@pytest.mark.parametrize("generator", get_args(GeneratorName))
def test_the_engines_step_equals_plain_pytorch(world: World, generator: GeneratorName) -> None:
    assert is_equal(twin_difference(world, generator))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # fp16's first loss scales are too large for both
def test_both_compute_in_the_same_types_and_layout(world: World, precision: str) -> None:
    assert is_equal(twin_difference(world, precision=precision, channels_last=True))


def test_any_reconstruction_takes_the_place_of_l1(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "reconstruction_loss", lambda one, other, _: recolor_kernels.l1_loss(one, other))
    assert is_equal(twin_difference(world, loss=LossConfig(reconstruction="huber")))


@pytest.mark.parametrize("adversarial", ["bce", "none"])
def test_the_generator_learns_from_what_a_frozen_network_sees(world: World, adversarial: Any) -> None:
    moments = {}
    for weight in (0.0, 10.0):
        loss = {"perceptual_weight": weight, "adversarial": adversarial}
        config = small_config(model={"width": 8, "dropout": 0.0}, loss=loss)
        engines = build_engines(config, world)
        assert (engines.perceptual is not None) == bool(weight)
        before = deepcopy(engines.perceptual.state_dict()) if engines.perceptual else {}
        gan_step(engines, *random_batch(0, config), config.loss)
        moments[weight] = [engines.generator.adam.state[p]["exp_avg"] for p in engines.generator.module.parameters()]
        after = engines.perceptual.state_dict() if engines.perceptual else {}
        assert all(torch.equal(before[name], value) for name, value in after.items())
    for one, other in zip(moments[0.0], moments[10.0], strict=True):
        assert torch.isfinite(other).all()
        assert not torch.equal(one, other)


def drop_adversarial_gradient(patch: pytest.MonkeyPatch) -> None:
    original = recolor_kernels.generator_loss
    patch.setattr(step_module, "generator_loss", lambda x, t, logits, *rest: original(x, t, logits.detach(), *rest))


def double_generator_loss(patch: pytest.MonkeyPatch) -> None:
    original = recolor_kernels.generator_loss

    def doubled(*arguments: Any) -> recolor_kernels.GeneratorLoss:
        loss = original(*arguments)
        return loss._replace(total=2 * loss.total)

    patch.setattr(step_module, "generator_loss", doubled)


def double_discriminator_loss(patch: pytest.MonkeyPatch) -> None:
    original = step_module.discriminator_step

    def doubled(engine: Any, *arguments: Any) -> Tensor:
        backward = engine.backward
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(engine, "backward", lambda loss: backward(2 * loss))
            return original(engine, *arguments)

    patch.setattr(step_module, "discriminator_step", doubled)


def leak_generators_gradient_into_discriminator(patch: pytest.MonkeyPatch) -> None:
    """What a missing requires_grad_(False) would do: the adversarial loss moves the discriminator too."""
    original = step_module.generator_step

    def leaking(
        engines: Engines, condition: Tensor, target: Tensor, prediction: Tensor, loss: LossConfig, *rest: Any
    ) -> Any:
        logits = engines.discriminator(condition, prediction.detach())
        engines.discriminator.backward(recolor_kernels.patch_loss(logits, True, "bce"))
        result = original(engines, condition, target, prediction, loss, *rest)
        engines.discriminator.step()
        return result

    patch.setattr(step_module, "generator_step", leaking)


def use_stale_logits(patch: pytest.MonkeyPatch) -> None:
    """The generator's step before the discriminator's: no fresh forward of the updated discriminator."""

    def swapped(engines: Engines, condition: Tensor, target: Tensor, loss: LossConfig) -> Any:
        prediction = engines.generator(condition)
        step_module.generator_step(engines, condition, target, prediction, loss)
        step_module.discriminator_step(engines.discriminator, condition, target, prediction.detach(), loss)

    patch.setitem(globals(), "gan_step", swapped)


@pytest.mark.parametrize(
    "mistake",
    [
        drop_adversarial_gradient,
        double_generator_loss,
        double_discriminator_loss,
        leak_generators_gradient_into_discriminator,
        use_stale_logits,
    ],
)
def test_the_comparison_notices(world: World, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Any], None]) -> None:
    mistake(monkeypatch)
    assert not is_equal(twin_difference(world))


@pytest.mark.parametrize("criterion", ["bce", "l1", "mse"])
def test_every_adversarial_criterion_trains_both_networks(world: World, criterion: str) -> None:
    config = small_config(loss={"adversarial": criterion})
    engines = build_engines(config, world)
    before = [deepcopy(engine.module.state_dict()) for engine in engines]
    losses = gan_step(engines, *random_batch(0, config), config.loss)
    assert all(torch.isfinite(loss) for loss in losses)
    torch.testing.assert_close(losses.generator, config.loss.l1_weight * losses.l1 + losses.adversarial)
    for engine, old in zip(engines, before, strict=True):
        for name, parameter in engine.module.named_parameters():
            assert not torch.equal(parameter, old[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_an_adversary_the_generator_alone_learns(world: World, accumulate: int) -> None:
    config = small_config(loss={"adversarial": "none"}, train={"accumulate": accumulate})
    engines = build_engines(config, world)
    before = [deepcopy(engine.module.state_dict()) for engine in engines]
    losses = gan_step(engines, *random_batch(0, config), config.loss, accumulate)
    torch.testing.assert_close(losses.generator, config.loss.l1_weight * losses.l1)
    assert losses.adversarial == losses.discriminator == 0
    for engine, old, learns in zip(engines, before, (True, False), strict=True):
        for name, parameter in engine.module.named_parameters():
            assert torch.equal(parameter, old[name]) != learns, name


def test_gradient_norms_are_those_of_the_step(world: World) -> None:
    engines = build_engines(config := small_config(), world)
    gan_step(engines, *random_batch(0, config), config.loss)
    for engine in engines:
        moments = [engine.adam.state[parameter]["exp_avg"] for parameter in engine.adam_parameters()]
        norm = torch.nn.utils.get_total_norm(moments) / (1 - config.train.betas[0])  # after one step of Adam
        assert engine.gradient_norm == pytest.approx(float(norm), rel=tolerances.LOSS_RELATIVE)


def test_same_seed_same_networks(world: World) -> None:
    one, two = (build_engines(small_config(), world) for _ in range(2))
    other = build_engines(small_config(run={"seed": 1}), world)
    for first, second, third in zip(one, two, other, strict=True):
        weight, same, different = (next(engine.module.parameters()) for engine in (first, second, third))
        assert torch.equal(weight, same)
        assert not torch.equal(weight, different)


@pytest.mark.parametrize(
    ("images_seen", "constant", "expected"),
    [(0, 0.5, 1.0), (50, 0.5, 1.0), (75, 0.5, 0.5), (100, 0.5, 0.0), (25, 0.0, 0.75), (99, 1.0, 1.0)],
)
def test_learning_rate_is_constant_then_falls_to_zero(images_seen: int, constant: float, expected: float) -> None:
    assert learning_rate(2.0, images_seen, 100, constant) == pytest.approx(2 * expected)
