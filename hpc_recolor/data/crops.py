"""Random crops of training samples, on the training device, after loading: the same for all loaders and caches."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def crop(rgb_u8_NHWC: Tensor, crops: NDArray[np.float32], smallest: float) -> Tensor:
    """A square cut from each image and enlarged to its size, bilinearly: uint8 (N,H,W,3).

    rgb_u8_NHWC: uint8 (N,H,W,3). crops: (N,3) in [0, 1), triples (size, left, top), as `SampleOrder.draw_crops` gives
    them. smallest: smallest side of the square as a share of the image's [above 0, to 1]; sides are uniform between it
    and the whole.
    """
    drawn = torch.from_numpy(crops)
    if rgb_u8_NHWC.is_cuda:
        drawn = drawn.pin_memory().to(rgb_u8_NHWC.device, non_blocking=True)
    size, left, top = drawn.unbind(1)
    side = smallest + (1 - smallest) * size
    zero = torch.zeros_like(side)
    # In coordinates of [-1, 1], as affine_grid has them: center x = (1 - side) * (2 * left - 1), and y alike.
    x, y = ((1 - side) * (2 * place - 1) for place in (left, top))
    boxes = torch.stack((side, zero, x, zero, side, y), dim=1).view(-1, 2, 3)
    rgb_N3HW = rgb_u8_NHWC.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(boxes, list(rgb_N3HW.shape), align_corners=False)
    cut = F.grid_sample(rgb_N3HW, grid, padding_mode="border", align_corners=False)
    return cut.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
