"""Counts the floating-point operations of a training step without computing any."""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels

IMAGES = 2  # BatchNorm refuses a batch of one where the features have shrunk to a pixel


def _gradient_flop(gradient: torch.Size, given: torch.Size, weight: torch.Size, *rest: Any, **_result: Any) -> int:
    """Operations of a convolution's gradients: every weight, at each place that it is put to, for each gradient.

    torch's own count takes the groups of a depthwise convolution for one.
    """
    transposed, computed = rest[4], rest[7]
    places = given if transposed else gradient
    flop: int = 2 * math.prod(weight) * places[0] * math.prod(places[2:]) * sum(computed[:2])
    return flop


GRADIENTS = {torch.ops.aten.convolution_backward: _gradient_flop}


def flop_per_image(config: Config) -> float:
    """Operations of the convolutions of both networks in one step, in which both learn, forward and backward
    [FLOP per image].

    A multiply-add counts as two. Recomputation that saves memory (train.accumulate) does not count, as in "model FLOPs"
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Draws no random numbers and allocates no tensors.
    """
    # Normalization does not count, and sync_batch would wait for the other ranks.
    model, side = config.model.model_copy(update={"norm": "batch"}), config.data.size
    with torch.device("meta"), FlopCounterMode(display=False, custom_mapping=GRADIENTS) as counter:
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
