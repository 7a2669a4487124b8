"""How many floating-point operations a training step takes, counted without computing any."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels

IMAGES = 2  # BatchNorm refuses one where a picture has shrunk to a pixel


def flop_per_image(config: Config) -> float:
    """Operations of convolutions in one step, forward and backward, of both networks, by image; a multiply-add is two.

    What is computed again to save memory (train.accumulate) does not count, as is the custom for "model FLOPs"
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Nothing is drawn or allocated.
    """
    # Normalization does not count, and that over all ranks would wait for the others.
    model, side = config.model.model_copy(update={"norm": "batch"}), config.data.size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator, discriminator = build_generator(model, side), build_discriminator(model)
        condition = torch.empty(IMAGES, CONDITION_CHANNELS, side, side)
        target = torch.empty(IMAGES, target_channels(model.color), side, side)
        prediction = generator(condition)
        if config.loss.adversarial != "none":
            for picture in (prediction.detach(), target):
                discriminator(condition, picture).sum().backward()
            discriminator.requires_grad_(False)
            discriminator(condition, prediction).sum().backward()
        else:
            prediction.sum().backward()
    total: int = counter.get_total_flops()
    return total / IMAGES
