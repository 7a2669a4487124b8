"""Memory formats of images."""

import torch
from torch import Tensor


def in_channels_last(tensor: Tensor) -> Tensor:
    """A tensor (N,C,H,W) in channels_last format, with strides that say so even if C is 1.

    Of one channel both formats are the same memory, so `contiguous` leaves the strides as they are. Concatenation later
    takes them for the contiguous format, and falls back to it: the discriminator's input would have to be transposed.
    """
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = tensor.shape
    if channels > 1:
        return tensor
    return tensor.as_strided(tensor.shape, (height * width, 1, width, 1))
