"""The count of a step's operations against the arithmetic of its convolutions."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from hpc_recolor.config import Config, GeneratorName
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.training.tracking.flops import flop_per_image

SIZE = 64


def convolutions(network: nn.Module, *inputs: Tensor) -> list[int]:
    """The multiply-adds of each convolution in a forward pass: every weight, once for each place that it is put to."""
    counts = []

    def count(module: nn.Conv2d | nn.ConvTranspose2d, given: tuple[Tensor], made: Tensor) -> None:
        places = given[0] if isinstance(module, nn.ConvTranspose2d) else made
        counts.append(module.weight.numel() * places[0, 0].numel() * places.shape[0])

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network(*inputs)
    return counts


@pytest.mark.parametrize("generator", get_args(GeneratorName))
@pytest.mark.parametrize("adversarial", ["bce", "none"])
def test_operations_are_two_for_each_multiply_add_of_both_networks(generator: str, adversarial: str) -> None:
    config = Config.model_validate(
        {
            "model": {"generator": generator, "width": 4, "color": "lab"},
            "data": {"size": SIZE},
            "loss": {"adversarial": adversarial},
        }
    )
    gray, color = torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, 2, SIZE, SIZE)
    generator_counts = convolutions(build_generator(config.model, SIZE), gray)
    discriminator_counts = convolutions(build_discriminator(config.model), gray, color)
    # Forward, then gradients of the weights, and of the inputs except where the first convolution takes an image.
    expected = 3 * sum(generator_counts) - generator_counts[0]
    if adversarial != "none":
        expected += 2 * (
            3 * sum(discriminator_counts) - discriminator_counts[0]
        )  # it learns from generated and from original images
        expected += 2 * sum(discriminator_counts)  # one more pass, with gradients for the generator
    assert flop_per_image(config) == expected  # of two images, and each is two operations


def test_counting_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    flop_per_image(Config.model_validate({"model": {"width": 4}, "data": {"size": SIZE}}))
    assert torch.equal(torch.get_rng_state(), before)
