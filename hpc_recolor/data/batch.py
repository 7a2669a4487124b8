"""What loaders yield."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """rgb_u8_NHWC: uint8 images (N, size, size, 3) on the training device. numbers: int64 (N,), the sample numbers."""

    rgb_u8_NHWC: Tensor  # noqa: N815, the layout
    numbers: Tensor


def flipped(rgb_u8_HWC: NDArray[np.uint8], horizontal: bool, vertical: bool) -> NDArray[np.uint8]:
    """An image (H, W, 3) mirrored left to right, top to bottom, or both."""
    if not horizontal:
        return rgb_u8_HWC[:: -1 if vertical else 1]
    pixels = np.ascontiguousarray(rgb_u8_HWC).view("V3")  # NumPy moves whole pixels eight times as fast as channels
    return np.ascontiguousarray(pixels[:: -1 if vertical else 1, ::-1]).view(np.uint8)
