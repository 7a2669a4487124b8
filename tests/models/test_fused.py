"""Norm, activation and dropout as one op in networks: as on a GPU, without one."""

import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from benchmarks.launches import as_on_a_gpu
from hpc_recolor.config import GeneratorName, ModelConfig, NormName
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.fused import FusedSequential, fuses
from hpc_recolor.models.layout import in_channels_last
from tests.support import tolerances

SIZE = 64
GENERATORS = [name for name in get_args(GeneratorName) if name != "backbone_unet"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of all calls of norm_act by networks."""
    fused: Any = sys.modules["hpc_recolor.models.fused"]
    seen: list[dict[str, Any]] = []
    real = fused.norm_act

    def noted(*arguments: Any, **options: Any) -> Tensor:
        seen.append(options)
        result: Tensor = real(*arguments, **options)
        return result

    monkeypatch.setattr(fused, "norm_act", noted)
    return seen


def generator_of(name: GeneratorName, norm: NormName, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    model = ModelConfig(generator=name, width=4, color="rgb", norm=norm, dropout=dropout)
    network: nn.Module = build_generator(model, SIZE)
    return network.to(memory_format=torch.channels_last).double()


def condition() -> Tensor:
    return in_channels_last(torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())


def trained(network: nn.Module) -> dict[str, Tensor]:
    """The output, gradients and buffers of a forward and backward pass."""
    output = network(condition())
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("name", GENERATORS)
def test_fused_networks_learn_what_plain_ones_do(
    name: GeneratorName, norm: NormName, calls: list[dict[str, Any]]
) -> None:
    expected = trained(generator_of(name, norm, dropout=0.0))
    assert not calls
    with as_on_a_gpu():
        found = trained(generator_of(name, norm, dropout=0.0))
    assert calls
    assert list(found) == list(expected)
    for key, value in expected.items():
        atol = tolerances.FUSED_FLOAT64 * float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=0, atol=atol)


def test_every_norm_of_both_networks_is_fused_and_joins_where_features_are_skipped(calls: list[dict[str, Any]]) -> None:
    generator, discriminator = (
        generator_of("unet", "batch", 0.5),
        build_discriminator(ModelConfig(width=4, color="rgb")),
    )
    discriminator = discriminator.to(memory_format=torch.channels_last)
    with as_on_a_gpu():
        discriminator(condition().float(), generator(condition()).float())
    assert [options["skipped_NSHW"] is not None for options in calls] == [False] * 4 + [True] * 5 + [False] * 3
    assert [options["dropout"] for options in calls if options["dropout"]] == [0.5]


def test_dropout_follows_torchs_generator() -> None:
    """So that a resumed run drops what it would have dropped."""
    layers = FusedSequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    features = in_channels_last(torch.randn(4, 8, 16, 16))
    state = torch.get_rng_state()
    with as_on_a_gpu():
        first, second = layers(features), layers(features)
        torch.set_rng_state(state)
        again = layers(features)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert 0.7 < float((first == 0).double().mean()) < 0.8


def test_what_the_op_cannot_do_is_left_to_torch() -> None:
    features = in_channels_last(torch.randn(2, 4, 3, 3))
    assert not fuses(nn.BatchNorm2d(4), features)
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    with as_on_a_gpu():
        assert fuses(nn.BatchNorm2d(4), features)
        assert fuses(nn.InstanceNorm2d(4, affine=True), features)
        assert not fuses(nn.BatchNorm2d(4), features.contiguous())
        for norm in (nn.BatchNorm2d(4).eval(), nn.SyncBatchNorm(4), nn.Conv2d(4, 4, 1), hooked):
            assert not fuses(norm, features)


@pytest.mark.parametrize("name", GENERATORS)
def test_in_evaluation_nothing_is_fused(name: GeneratorName, calls: list[dict[str, Any]]) -> None:
    with as_on_a_gpu(), torch.no_grad():
        generator_of(name, "batch", dropout=0.5).eval()(condition())
    assert not calls
