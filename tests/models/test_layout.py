"""Memory formats that convolutions and norms are given, on a GPU that is not there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_recolor.config import ModelConfig
from hpc_recolor.config_file import load_config
from hpc_recolor.models import unet
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.layout import in_channels_last
from hpc_recolor.training.engine.deepspeed_engine import compile_options

SIZE = 32


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what convolutions are given and return, and whether the gradients that norms are given are dense."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convolved: list[tuple[Tensor, Tensor]] = []
        self.dense: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.convolved.append((args[0], result))
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.dense.append(torch.ops.aten.is_non_overlapping_and_dense(args[0]))
        return result


def is_channels_last(tensor: Tensor) -> bool:
    _, channels, _, width = tensor.shape
    return tensor.stride()[1] == 1 and tensor.stride()[3] == channels and tensor.stride()[2] == width * channels


def on_no_gpu(network: nn.Module) -> None:
    """Replace parameters and buffers by ones on a GPU that hold no data, with the same strides."""
    for module in network.modules():
        for name, own in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            fake = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device="cuda")
            delattr(module, name)
            if isinstance(own, nn.Parameter):
                module.register_parameter(name, nn.Parameter(fake))
            else:
                module.register_buffer(name, fake)


def formats(convert: Callable[[Tensor], Tensor]) -> list[bool]:
    """For each convolution of a prediction and its judgment, whether it is given and returns channels_last.

    convert: of the condition.
    """
    model = ModelConfig(width=4, color="rgb")
    networks = build_generator(model, SIZE), build_discriminator(model)
    for network in networks:
        network.to(memory_format=torch.channels_last)
    with FakeTensorMode(), Watch() as watched:
        for network in networks:
            on_no_gpu(network)
        condition = convert(torch.empty(2, 1, SIZE, SIZE, device="cuda"))
        generator, discriminator = networks
        discriminator(condition, generator(condition))
    return [is_channels_last(given) and is_channels_last(output) for given, output in watched.convolved]


def test_every_convolution_stays_in_channels_last_on_a_gpu() -> None:
    assert formats(in_channels_last) == [True] * 15
    by_torch = formats(lambda condition: condition.contiguous(memory_format=torch.channels_last))
    assert by_torch == [False, *[True] * 9, False, *[True] * 4]  # the first of each network


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler inspects deprecated attributes
def test_compiled_too_the_discriminator_keeps_channels_last() -> None:
    """Inductor gives it up by itself, for the last layer, and is told not to."""
    from torch._inductor import config as inductor
    from torch._inductor.graph import GraphLowering
    from torch.fx.experimental.proxy_tensor import make_fx

    discriminator = build_discriminator(ModelConfig(width=4, color="rgb"))
    with FakeTensorMode():
        on_no_gpu(discriminator)
        pair = torch.empty(2, 1, SIZE, SIZE, device="cuda"), torch.empty(2, 3, SIZE, SIZE, device="cuda")
        graph = make_fx(discriminator)(*pair)
    assert not GraphLowering.decide_layout_opt(graph, is_inference=False)
    for channels_last in (False, True):
        options = compile_options(load_config(None, {"train": {"channels_last": channels_last}}))
        with inductor.patch(options):
            assert GraphLowering.decide_layout_opt(graph, is_inference=False) == channels_last


@pytest.mark.parametrize("channels", [1, 3])
def test_conversion_keeps_values_and_gradients(channels: int) -> None:
    given = torch.randn(2, channels, 4, 5, requires_grad=True)
    converted = in_channels_last(given)
    assert is_channels_last(converted)
    assert torch.equal(converted, given)
    assert in_channels_last(converted).data_ptr() == converted.data_ptr()
    (converted * torch.arange(5.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert torch.equal(given.grad, torch.arange(5.0).expand_as(given))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_that_batch_norm_is_given_are_dense_on_a_gpu(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a larger gradient, as concatenation hands back, would take a slow generic kernel there."""
    monkeypatch.setattr(unet, "activates_apart", lambda tensor: True)
    model = ModelConfig(width=4, color="rgb")
    generator, discriminator = build_generator(model, SIZE), build_discriminator(model)
    condition = torch.randn(2, 1, SIZE, SIZE)
    if channels_last:
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last)
        condition = in_channels_last(condition)
    with Watch() as watched:
        discriminator(condition, generator(condition)).mean().backward()
    assert watched.dense == [True] * 10


@pytest.mark.parametrize("apart", [False, True])
def test_skipped_features_are_activated_with_those_they_join(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in pix2pix, where a level's activation comes first and follows the concatenation: to the bit, on a CPU with
    all gradients."""
    monkeypatch.setattr(unet, "activates_apart", lambda tensor: apart)
    torch.manual_seed(0)
    generator: Any = build_generator(ModelConfig(width=4, color="rgb", dropout=0.0), SIZE)
    condition = torch.randn(2, 1, SIZE, SIZE)
    features = [condition]
    for level, down in enumerate(generator.down):
        given = features[-1] if level == 0 else nn.functional.leaky_relu(features[-1], 0.2)
        features.append(nn.Sequential(*(layer for layer in down if not isinstance(layer, nn.LeakyReLU)))(given))
    output = features.pop()
    for number, up in enumerate(generator.up):
        output = nn.Sequential(*up)(torch.relu(output))
        if number < len(generator.up) - 1:
            output = torch.cat((features.pop(), output), dim=1)
    found = generator(condition)
    assert torch.equal(found, output)
    if not apart:
        weights = list(generator.parameters())
        pairs = (torch.autograd.grad(result.square().sum(), weights) for result in (found, output))
        assert all(map(torch.equal, *pairs))
