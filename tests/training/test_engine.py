"""Engines beyond the plain step: precisions, microbatches, clipping, memory layouts, averages."""

from typing import Any

import pytest
import torch

from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine.convolution_types import ConvolutionTypes
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.engine.engine import FIRST_LOSS_SCALE, Engines
from hpc_recolor.training.engine.engine_state import MOMENTS, WEIGHT, Fragment, adam_steps, fragments, load, owned
from hpc_recolor.training.step import StepLosses, gan_step
from tests.support import tolerances
from tests.support.training_runs import differences, networks
from tests.support.workers import random_batch, small_config

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)


def trained(world: World, count: int = 3, **sections: dict[str, Any]) -> tuple[Engines, list[StepLosses]]:
    """Engines without dropout and BatchNorm after `count` steps, and the losses of these."""
    model = {"width": 8, "dropout": 0.0, "norm": "instance"} | sections.pop("model", {})
    config = small_config(model=model, **sections)
    engines = build_engines(config, world)
    losses = []
    for number in range(count):
        losses.append(gan_step(engines, *random_batch(number, config), config.loss, config.train.accumulate))
        if config.train.precision == "fp16":
            for engine in engines:
                engine.adapt_loss_scale(engine.skipped.bool(), held=torch.tensor(False))
    return engines, losses


def train_section(**values: Any) -> dict[str, Any]:
    return {"batch_size": 8, "device": "cpu", "threads": 1} | values


def worst(one: list[StepLosses], two: list[StepLosses]) -> float:
    """The largest relative difference of a loss."""
    first, second = (torch.tensor([[float(loss) for loss in row] for row in rows]) for rows in (one, two))
    return float(((first - second).abs() / first.abs()).max())


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_in_parts_gives_the_update_of_the_whole(world: World, stage: int) -> None:
    _, expected = trained(world)
    _, found = trained(world, train=train_section(accumulate=4), deepspeed={"zero_stage": stage})
    assert worst(expected, found) < tolerances.PARTS_RELATIVE


def test_both_networks_see_the_same_prediction_of_a_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is computed twice, with dropout."""
    seen: list[torch.Tensor] = []
    from hpc_recolor.training import step

    for name in ("discriminator_step", "generator_step"):
        original = getattr(step, name)

        def noted(*arguments: Any, original: Any = original) -> Any:
            seen.append(arguments[3].detach().clone())
            return original(*arguments)

        monkeypatch.setattr(step, name, noted)
    trained(world, count=1, model={"dropout": 0.5}, train=train_section(accumulate=2))
    of_discriminator, of_generator = seen[:2], seen[2:]
    assert all(torch.equal(one, two) for one, two in zip(of_discriminator, of_generator, strict=True))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_float32(world: World, stage: int, precision: str) -> None:
    sections = {"train": train_section(precision=precision), "deepspeed": {"zero_stage": stage}}
    engines, found = trained(world, count=1, **sections)
    _, expected = trained(world, count=1)
    assert 0 < worst(expected, found) < tolerances.LOW_PRECISION_RELATIVE
    for fragment in fragments(engines.generator):
        assert {tensor.dtype for tensor in fragment.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("generator", ["unet", "backbone_unet"])
def test_every_convolution_computes_in_the_configured_type(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    generator: str,
    stage: int,
    precision: str,
    dtype: torch.dtype,
    accumulate: int,
) -> None:
    """As on a GPU, where torch.is_autocast_enabled() without an argument tells DeepSpeed to switch autocast off."""
    original = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": original(kind))
    with ConvolutionTypes() as types:
        trained(
            world,
            count=1,
            model={"generator": generator, "backbone_weights": "none"},
            train=train_section(precision=precision, accumulate=accumulate),
            deepspeed={"zero_stage": stage},
        )
    assert set(types.seen) == {dtype}
    assert types.seen.total() >= 40


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_finds_a_scale_and_then_learns(world: World, stage: int) -> None:
    engines, _ = trained(world, 12, train=train_section(precision="fp16"), deepspeed={"zero_stage": stage})
    generator = engines.generator
    halvings = torch.log2(FIRST_LOSS_SCALE / generator.loss_scale)
    assert halvings == 12 - adam_steps(generator)
    assert adam_steps(generator) >= 6


@pytest.mark.parametrize("stage", STAGES)
def test_the_longest_gradient_is_the_one_asked_for(world: World, stage: int) -> None:
    """Adam's first moment after one step is the gradient times (1 - beta1)."""
    longest = {}
    for clip_norm in (0.0, 0.5):
        sections = {"train": train_section(clip_norm=clip_norm), "deepspeed": {"zero_stage": stage}}
        engines, _ = trained(world, 1, **sections)
        moments = [fragment.tensors["exp_avg"].reshape(-1) for fragment in fragments(engines.generator)]
        longest[clip_norm] = float(torch.cat(moments).norm()) / (1 - 0.5)
    assert longest[0.0] > 5
    assert longest[0.5] == pytest.approx(0.5, rel=tolerances.CLIP_RELATIVE)


@pytest.mark.parametrize("stage", STAGES)
def test_channels_last_changes_the_layout_and_not_the_numbers(world: World, stage: int) -> None:
    _, expected = trained(world)
    _, found = trained(world, train=train_section(channels_last=True), deepspeed={"zero_stage": stage})
    assert worst(expected, found) < tolerances.PARTS_RELATIVE


@pytest.mark.filterwarnings("default")  # torch's compiler inspects deprecated attributes
def test_compiled_networks_compute_the_same(world: World) -> None:
    model = {"generator": "autoencoder", "width": 4}
    _, expected = trained(world, 2, model=model)
    engines, found = trained(world, 2, model=model, train=train_section(compile=True))
    assert worst(expected, found) < tolerances.PARTS_RELATIVE
    assert list(engines.generator.module.state_dict()) == list(
        trained(world, 0, model=model)[0].generator.module.state_dict()
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_state_goes_by_name_into_other_engines(world: World, stage: int, channels_last: bool) -> None:
    engines, _ = trained(world, train=train_section(channels_last=channels_last), deepspeed={"zero_stage": stage})
    expected = networks(engines, world)
    for other_stage in STAGES:
        others = build_engines(
            small_config(model={"width": 8, "norm": "instance"}, deepspeed={"zero_stage": other_stage}), world
        )
        for network, engine in others.items():

            def read(kind: str, name: str, start: int, numel: int, network: str = network) -> torch.Tensor:
                return expected[f"{network}.{kind}.{name}"].reshape(-1)[start : start + numel]

            load(engine, int(expected[f"{network}.steps"]), read)
        assert differences(expected, networks(others, world)) == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_element_is_owned_by_exactly_one_rank(world: World, ranks: int) -> None:
    engine = trained(world, 0)[0].generator
    shares = [owned(engine, World(rank, ranks, rank, world.device)) for rank in range(ranks)]
    names = [fragment.name for share in shares for fragment in share]
    assert sorted(names) == sorted(name for name, _ in engine.module.named_parameters())
    sizes = [sum(fragment.numel for fragment in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(parameter.numel() for parameter in engine.module.parameters())


def test_the_average_moves_half_way_in_a_half_life() -> None:
    weights = {key: torch.zeros(3) for key in (WEIGHT, *MOMENTS)}
    average = MovingAverage([Fragment("weight", 0, weights)], half_life_images=100)
    weights[WEIGHT].fill_(1.0)
    average.update(torch.tensor(average.share(images=100, images_seen=100_000)))
    assert average.averages[0].tolist() == [0.5] * 3
    for _ in range(10):
        average.update(torch.tensor(average.share(images=10, images_seen=100_000)))
    torch.testing.assert_close(average.averages[0], torch.full((3,), 0.75))


def test_the_average_moves_as_by_torchs_lerp_to_the_bit() -> None:
    torch.manual_seed(0)
    weights = {key: torch.randn(5, 7) for key in (WEIGHT, *MOMENTS)}
    average = MovingAverage([Fragment("weight", 0, weights)], half_life_images=100)
    weights[WEIGHT] += torch.randn(5, 7)
    expected, learned = average.averages[0].clone(), weights[WEIGHT].clone()
    for share in (0.0, 0.001, 0.3):
        average.update(torch.tensor(share))
        expected.lerp_(learned, share)
        assert torch.equal(average.averages[0], expected)
    assert torch.equal(weights[WEIGHT], learned)


def test_a_young_average_forgets_its_first_weights_soon() -> None:
    weights = {key: torch.zeros(1) for key in (WEIGHT, *MOMENTS)}
    average = MovingAverage([Fragment("weight", 0, weights)], half_life_images=10_000)
    weights[WEIGHT].fill_(1.0)
    average.update(torch.tensor(average.share(images=16, images_seen=16)))
    assert average.averages[0].item() > 0.999


@pytest.mark.parametrize("stage", STAGES)
def test_a_backbone_has_a_learning_rate_of_its_own(world: World, stage: int) -> None:
    model = {"generator": "backbone_unet", "width": 4, "backbone_weights": "none"}
    config = small_config(model=model, deepspeed={"zero_stage": stage})
    engines = build_engines(config, world)

    def moved(scale: float) -> dict[bool, float]:
        """How far the weights of the backbone and of the others move in a step."""
        before = {part.name: part.tensors[WEIGHT].clone() for part in fragments(engines.generator)}
        engines.set_lr(1e-3, scale)
        gan_step(engines, *random_batch(0, config), config.loss)
        far = {True: 0.0, False: 0.0}
        for part in fragments(engines.generator):
            mine = part.name.startswith("backbone.")
            far[mine] = max(far[mine], float((part.tensors[WEIGHT] - before[part.name]).abs().max()))
        return far

    frozen, slow = moved(0.0), moved(0.1)
    assert frozen[True] == 0.0 < frozen[False]
    assert 0.0 < slow[True] < 0.2 * slow[False]
