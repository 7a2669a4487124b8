"""Networks of a config, with their initial weights: pix2pix's, or a pretrained backbone's."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hpc_recolor.config import ModelConfig
from hpc_recolor.models.autoencoder import Autoencoder
from hpc_recolor.models.backbone_unet import BackboneUNet
from hpc_recolor.models.patch import PatchDiscriminator
from hpc_recolor.models.resnet import ResNet
from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels
from hpc_recolor.models.unet import UNet, depth_for
from hpc_recolor.runtime.errors import UserError

Generator = UNet | Autoencoder | ResNet | BackboneUNet


def build_generator(model: ModelConfig, size: int, *, pretrained: bool = False) -> Generator:
    """The generator of a config, for images of side `size` [pixels], on CPU. Draws its weights from torch's RNG.

    pretrained: a backbone takes model.backbone_weights, which is where a training starts; else it is drawn too.
    Raises UserError if timm has no such backbone, or its weights cannot be had.
    """
    channels = (CONDITION_CHANNELS, target_channels(model.color))
    generator: Generator
    match model.generator:
        case "unet":
            generator = UNet(*channels, model.width, depth_for(size), model.norm, model.dropout)
        case "autoencoder":
            generator = Autoencoder(*channels, model.width, model.norm, model.dropout)
        case "resnet":
            generator = ResNet(*channels, model.width, model.norm, model.dropout)
        case "backbone_unet":
            # Keeps the initial weights of its parts: N(0, 0.02) is made for pix2pix.
            return BackboneUNet(*channels, model, pretrained)
    generator.apply(_draw_weights)
    return generator


def build_discriminator(model: ModelConfig) -> PatchDiscriminator:
    """The discriminator of a config, on CPU. Draws its weights from torch's RNG."""
    inputs = CONDITION_CHANNELS + target_channels(model.color)
    discriminator = PatchDiscriminator(inputs, model.width, model.norm)
    discriminator.apply(_draw_weights)
    return discriminator


def place(network: nn.Module, model: ModelConfig, device: torch.device) -> nn.Module:
    """Move a network to its device; on GPUs, synchronized batch norm becomes torch's SyncBatchNorm."""
    if model.norm == "sync_batch" and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return network.to(device)


def _draw_weights(module: nn.Module) -> None:
    """Convolutions N(0, 0.02), norm scales N(1, 0.02), biases 0 (arXiv:1611.07004, section 6.2)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if (
        isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.InstanceNorm2d)
        and module.bias is not None
    ):
        nn.init.zeros_(module.bias)


def load_weights(
    network: nn.Module,
    weights: dict[str, Tensor],
    source: Path,
    fix: str = "restore the config.yaml that it was trained with",
) -> None:
    """Load a state dict into a network. source, fix: named in the error. Raises UserError if names or shapes differ."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        name = next(name for name in expected | found if expected.get(name) != found.get(name))
        raise UserError(
            str(source),
            f"does not fit the config: {name} is {found.get(name, 'missing')} there and "
            f"{expected.get(name, 'missing')} in the config",
            fix,
        )
    network.load_state_dict(weights)
