"""Color conversion, losses and metrics for colorizers, as functions on tensors.

Ranges, used everywhere: RGB images are uint8 in NHWC; L is L*/50 - 1 and ab is (a*, b*)/110, so both are about
[-1, 1]; gray and RGB targets are level/127.5 - 1. Tensors of networks are NCHW.
"""

from recolor_kernels.adversarial import discriminator_loss, patch_loss
from recolor_kernels.ciede2000 import ciede2000_loss
from recolor_kernels.color import lab_to_rgb, lab_to_rgb_u8, rgb_to_gray, rgb_to_lab
from recolor_kernels.constants import AB_SCALE
from recolor_kernels.gather import gather, gather_gray, gather_lab
from recolor_kernels.generator import GeneratorLoss, generator_loss
from recolor_kernels.launch import Impl
from recolor_kernels.losses import l1_lab_loss, l1_loss
from recolor_kernels.metrics import ColorMetrics, color_metrics
from recolor_kernels.norm_act import Tracked, norm_act
from recolor_kernels.reference import Criterion, rgb_float_to_u8

__all__ = [
    "AB_SCALE",
    "ColorMetrics",
    "Criterion",
    "GeneratorLoss",
    "Impl",
    "Tracked",
    "ciede2000_loss",
    "color_metrics",
    "discriminator_loss",
    "gather",
    "gather_gray",
    "gather_lab",
    "generator_loss",
    "l1_lab_loss",
    "l1_loss",
    "lab_to_rgb",
    "lab_to_rgb_u8",
    "norm_act",
    "patch_loss",
    "rgb_float_to_u8",
    "rgb_to_gray",
    "rgb_to_lab",
]
