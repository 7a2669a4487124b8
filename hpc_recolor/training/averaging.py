"""An exponential moving average of the generator's weights; each rank averages the fragments it owns."""

import torch
from torch import Tensor

from hpc_recolor.training.engine.engine_state import WEIGHT, Fragment

# The half-life is at most this share of images_seen, or the initial weights would dominate the average for long.
RAMP_UP = 0.05


class MovingAverage:
    """Averages of weight fragments; elementwise, so the same on any number of ranks and at any ZeRO stage.

    half_life_images: images after which a weight's share in the average has halved.
    """

    def __init__(self, fragments: list[Fragment], half_life_images: int) -> None:
        self.fragments = fragments
        self.half_life_images = half_life_images
        self.weights = [fragment.tensors[WEIGHT] for fragment in fragments]
        self.averages = [weight.clone() for weight in self.weights]

    def share(self, images: int, images_seen: int) -> float:
        """The share that the weights have in the average after a step of `images`; `images_seen` includes them."""
        half_life = min(self.half_life_images, RAMP_UP * images_seen)
        share: float = 1 - 0.5 ** (images / half_life)
        return share

    def update(self, share: Tensor) -> None:
        """Move the averages toward the weights by this share, a float32 tensor (); 0 leaves them as they are."""
        if not self.averages:
            return
        if torch.compiler.is_compiling():  # it makes one kernel of this, and cannot trace a fused optimizer
            torch._foreach_lerp_(self.averages, self.weights, [share] * len(self.averages))
        else:
            # average -= share * (average - weight): fused SGD on gradients of -weight, with a weight decay of 1. One
            # launch for all, where torch's lerp takes one each if the share is on the device.
            torch._fused_sgd_(
                *(self.averages, self.weights, []),
                weight_decay=1.0,
                momentum=0.0,
                lr=share,
                dampening=0.0,
                nesterov=False,
                maximize=True,
                is_first_step=False,
            )
