"""What torch.compile is given, and when gradients arrive from it."""

import pytest
import torch
from torch import Tensor, nn

from hpc_recolor.config import ModelConfig
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.training.engine.deepspeed_engine import compiled_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # torch's compiler inspects deprecated attributes
]


def order_of_gradients(ranks: int) -> list[str]:
    """Names of the generator's weights, and "condition", in the order in which their gradients arrive."""
    torch._dynamo.reset()
    generator = build_generator(ModelConfig(width=2, color="rgb", dropout=0.0), 32)
    for part in compiled_parts(generator, ranks):
        part.compile(backend="aot_eager")
    arrived: list[str] = []

    def note(name: str, parameter: Tensor) -> None:
        parameter.register_post_accumulate_grad_hook(lambda _: arrived.append(name))  # type: ignore[no-untyped-call]

    for name, parameter in generator.named_parameters():
        if parameter.dim() == 4:
            note(name, parameter)
    if ranks > 1:  # where the backward pass comes to the first block

        def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda _: arrived.append("first block"))  # type: ignore[no-untyped-call]

        generator.get_submodule("down.0").register_forward_hook(watch)
    condition = torch.randn(2, 1, 32, 32)
    generator(condition).square().mean().backward()
    return arrived


def test_on_several_ranks_gradients_arrive_block_by_block() -> None:
    """All but those of the first block before its backward pass begins."""
    arrived = order_of_gradients(ranks=2)
    assert len(arrived) == 11
    assert arrived[-2:] == ["first block", "down.0.0.weight"]
    assert arrived[0] == "up.4.1.weight"


def test_on_one_rank_a_network_is_compiled_as_a_whole() -> None:
    for network in (build_generator(ModelConfig(width=2), 32), build_discriminator(ModelConfig(width=2))):
        assert compiled_parts(network, ranks=1) == [network]
    assert compiled_parts(network, ranks=2) == [network]  # the discriminator has no blocks
