"""What the networks' inputs and outputs are. Imports no torch, so that a config is checked without it."""

import math

from hpc_recolor.config import ColorName, Config, GeneratorName
from hpc_recolor.runtime.errors import UserError

# Gray, or Lab's L.
CONDITION_CHANNELS = 1

# Below a vividness of 1, chroma is multiplied by this power of it.
PALENESS_POWER = math.log2(3)

# How often each generator halves its input; for the U-Net at least (see unet.depth_for).
HALVINGS: dict[GeneratorName, int] = {"unet": 5, "autoencoder": 4, "resnet": 2, "backbone_unet": 5}


def target_channels(color: ColorName) -> int:
    """Channels that the generator predicts: 3 for RGB, 2 for ab."""
    return 3 if color == "rgb" else 2


def check_shapes(config: Config) -> None:
    """Raises UserError unless the generator can halve data.size and double it back to the same size, and predicts what
    it can at its chroma_stride."""
    generator, size = config.model.generator, config.data.size
    multiple = 2 ** HALVINGS[generator]
    if size % multiple:
        raise UserError(
            f"data.size={size}", f"does not fit model.generator={generator}", f"use a multiple of {multiple}"
        )
    if generator == "backbone_unet" and config.model.color == "rgb" and config.model.chroma_stride > 1:
        raise UserError(
            f"model.chroma_stride={config.model.chroma_stride}",
            "would blur the lightness that model.color=rgb predicts",
            "use model.color=lab, or model.chroma_stride=1",
        )
    if config.model.bin_width and (generator != "backbone_unet" or config.model.color != "lab"):
        raise UserError(
            f"model.bin_width={config.model.bin_width}",
            f"model.generator={generator} with model.color={config.model.color} predicts no distribution over ab",
            "use model.generator=backbone_unet and model.color=lab, or model.bin_width=0",
        )
    if config.loss.reconstruction == "bins" and not config.model.bin_width:
        raise UserError(
            "loss.reconstruction=bins",
            "compares distributions over ab, and model.bin_width=0 predicts none",
            "use model.bin_width=12 with model.generator=backbone_unet, or another loss.reconstruction",
        )
    if config.loss.reconstruction == "ciede2000" and config.model.color != "lab":
        raise UserError(
            "loss.reconstruction=ciede2000",
            f"measures ab, which model.color={config.model.color} does not predict",
            "use model.color=lab, or another loss.reconstruction",
        )
