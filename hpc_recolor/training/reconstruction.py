"""The generator's loss against the original colors, beside the adversarial one."""

import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.config import DistanceName
from recolor_kernels import ciede2000_loss, l1_loss

# Quadratic below this difference of values in [-1, 1]: 2.2 Lab units, which eyes hardly see.
HUBER_DELTA = 0.02


def reconstruction_loss(prediction_NCHW: Tensor, target_NCHW: Tensor, name: DistanceName) -> Tensor:
    """How far colors are from the original ones: a mean over all pixels, ().

    prediction, target: (N,C,H,W) in [-1, 1]. "l1" and "huber" are means over channels too, the latter in units of
    L1 (Huber 1964, divided by its delta); "ciede2000" is `recolor_kernels.ciede2000_loss`, for ab alone.
    """
    match name:
        case "l1":
            return l1_loss(prediction_NCHW, target_NCHW)
        case "huber":
            return F.huber_loss(prediction_NCHW, target_NCHW, delta=HUBER_DELTA) / HUBER_DELTA
        case "ciede2000":
            return ciede2000_loss(prediction_NCHW, target_NCHW)
