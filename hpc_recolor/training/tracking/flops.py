"""Counts the floating-point operations of a training step without computing any."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels

IMAGES = 2  # BatchNorm refuses a batch of one where the features have shrunk to a pixel


def flop_per_image(config: Config) -> float:
    """Operations of the convolutions of both networks in one step, forward and backward [FLOP per image].

    A multiply-add counts as two. Recomputation that saves memory (train.accumulate) does not count, as in "model FLOPs"
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Draws no random numbers and allocates no tensors.
    """
    # Normalization does not count, and sync_batch would wait for the other ranks.
    model, side = config.model.model_copy(update={"norm": "batch"}), config.data.size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator, discriminator = build_generator(model, side), build_discriminator(model)
        condition = torch.empty(IMAGES, CONDITION_CHANNELS, side, side)
        target = torch.empty(IMAGES, target_channels(model.color), side, side)
        prediction = generator(condition)
        if config.loss.adversarial != "none":
            for image in (prediction.detach(), target):
                discriminator(condition, image).sum().backward()
            discriminator.requires_grad_(False)
            discriminator(condition, prediction).sum().backward()
        else:
            prediction.sum().backward()
    total: int = counter.get_total_flops()
    return total / IMAGES
