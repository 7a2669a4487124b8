"""The networks: sizes, shapes and ranges."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from hpc_recolor.config import ColorName, GeneratorName, ModelConfig, NormName
from hpc_recolor.models.build import build_discriminator, build_generator, load_weights
from hpc_recolor.models.shapes import HALVINGS, target_channels
from hpc_recolor.runtime.errors import UserError

GENERATORS = get_args(GeneratorName)


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("color", "unet", "patch"), [("rgb", 41_826_947, 2_766_657), ("lab", 41_824_898, 2_765_633)])
def test_unet_and_discriminator_have_pix2pix_parameter_counts(color: ColorName, unet: int, patch: int) -> None:
    model = ModelConfig(color=color, width=64)
    assert parameters(build_generator(model, 128)) == unet
    assert parameters(build_discriminator(model)) == patch


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("color", ["rgb", "lab"])
@pytest.mark.parametrize(
    ("generator", "size", "shape"),
    [
        ("unet", 128, (128, 256)),
        ("unet", 32, (64, 32)),
        ("unet", 96, (96, 96)),
        ("unet", 256, (256, 128)),
        ("autoencoder", 128, (48, 32)),
        ("resnet", 128, (36, 60)),
        ("backbone_unet", 128, (96, 32)),
    ],
)
def test_generators_color_any_size_that_divides(
    generator: GeneratorName, size: int, shape: tuple[int, int], color: ColorName, norm: NormName
) -> None:
    network = build_generator(ModelConfig(generator=generator, color=color, width=4, norm=norm), size)
    assert all(side % network.multiple == 0 for side in shape)
    output = network(torch.rand(2, 1, *shape) * 2 - 1)
    assert output.shape == (2, target_channels(color), *shape)
    assert -1 <= output.min() < output.max() <= 1


@pytest.mark.parametrize(("size", "logits"), [(128, 14), (256, 30), (32, 2)])
def test_discriminator_judges_patches(size: int, logits: int) -> None:
    discriminator = build_discriminator(ModelConfig(color="lab", width=4))
    judged = discriminator(torch.zeros(2, 1, size, size), torch.zeros(2, 2, size, size))
    assert judged.shape == (2, 1, logits, logits)


def test_a_logit_sees_70_pixels() -> None:
    discriminator = build_discriminator(ModelConfig(color="lab", width=4)).eval()
    condition = torch.zeros(1, 1, 128, 128, requires_grad=True)
    discriminator(condition, torch.zeros(1, 2, 128, 128))[0, 0, 7, 7].backward()
    assert condition.grad is not None
    rows = condition.grad[0, 0].abs().sum(1).nonzero()
    assert rows.max() - rows.min() + 1 == 70


@pytest.mark.parametrize("generator", ["unet", "autoencoder", "resnet"])
def test_width_scales_the_networks(generator: GeneratorName) -> None:
    narrow, wide = (build_generator(ModelConfig(generator=generator, width=width), 128) for width in (8, 16))
    assert 3.5 < parameters(wide) / parameters(narrow) < 4.1


@pytest.mark.parametrize("generator", GENERATORS)
def test_dropout_acts_in_training_only(generator: GeneratorName) -> None:
    network = build_generator(ModelConfig(generator=generator, width=4, norm="instance"), 128)
    condition = torch.rand(1, 1, 128, 128)
    assert not torch.equal(network(condition), network(condition))
    network.eval()
    assert torch.equal(network(condition), network(condition))


def test_no_convolution_before_a_norm_has_a_bias() -> None:
    """Its gradient would be rounding alone, which Adam turns into full steps."""
    for generator in GENERATORS:
        network = build_generator(ModelConfig(generator=generator, width=4), 128)
        convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
        biased = [
            module for module in network.modules() if isinstance(module, convolutions) and module.bias is not None
        ]
        assert len(biased) == (2 if generator == "backbone_unet" else 1), generator  # its innermost has no norm


def test_weights_that_do_not_fit_are_named() -> None:
    small, large = (build_generator(ModelConfig(width=width), 128) for width in (4, 8))
    with pytest.raises(
        UserError, match=r"there: does not fit the config: down.0.0.weight is \(8, 1, 4, 4\) there and \(4"
    ):
        load_weights(small, large.state_dict(), Path("there"))


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_size_that_the_config_allows_fits_the_network(generator: GeneratorName) -> None:
    for size in range(32, 160, 2 ** HALVINGS[generator]):
        assert size % build_generator(ModelConfig(generator=generator, width=1), size).multiple == 0
