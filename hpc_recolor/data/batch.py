"""What loaders yield."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """rgb_u8_NHWC: uint8 images (N, size, size, 3) on the training device. numbers: int64 (N,), the sample numbers.

    picks: of a batch that is yet to be gathered, where rgb_u8_NHWC are all images, in the same memory in every batch:
    int64 (N,3) on the training device, as `recolor_kernels.gather` takes them.
    """

    rgb_u8_NHWC: Tensor  # noqa: N815, the layout
    numbers: Tensor
    picks: Tensor | None = None


def flipped(rgb_u8_HWC: NDArray[np.uint8], horizontal: bool, vertical: bool) -> NDArray[np.uint8]:
    """An image (H, W, 3) mirrored left to right, top to bottom, or both."""
    if not horizontal:
        return rgb_u8_HWC[:: -1 if vertical else 1]
    pixels = np.ascontiguousarray(rgb_u8_HWC).view("V3")  # NumPy moves whole pixels eight times as fast as channels
    return np.ascontiguousarray(pixels[:: -1 if vertical else 1, ::-1]).view(np.uint8)
