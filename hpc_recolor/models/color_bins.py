"""Distributions over bins of ab: the colors that they are decoded to, and the loss that they are learned by."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recolor_kernels import AB_SCALE, rgb_to_lab

# Of soft targets: how many bins share a color, and the standard deviation of the Gaussian that divides it [Lab units].
NEIGHBORS = 5
SIGMA = 5.0

LEVEL_STEP = 15  # between the levels of R, G and B that are looked at: a square that no such color lies in is left out


class ColorBins(nn.Module):
    """The bins of Zhang, Isola and Efros 2016, arXiv:1603.08511: K squares of ab that hold colors of sRGB, 183 of
    side 12 or 254 of side 10.

    width: side of a square [Lab units]. temperature: see `decode`. centers: of the squares, (K,2), in the range of
    rgb_to_lab. weights: (K,), of the loss where a pixel's color is nearest to each; 1 until `rebalance`. Both are
    buffers, so that checkpoints and exported files say what their logits mean.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.centers: Tensor
        self.weights: Tensor
        self.register_buffer("centers", torch.tensor(bin_centers(width)) / AB_SCALE)
        self.register_buffer("weights", torch.ones(len(self.centers)))

    def decode(self, logits_NKHW: Tensor) -> Tensor:
        """ab (N,2,H,W): the annealed mean (equation 5), which is the mean at a temperature of 1 and nears the mode
        toward 0."""
        shares = F.softmax(logits_NKHW / self.temperature, dim=1)
        return torch.einsum("nkhw,kc->nchw", shares, self.centers)

    def soft_targets(self, ab_N2HW: Tensor) -> tuple[Tensor, Tensor]:
        """The NEIGHBORS bins whose centers are nearest to each color: their numbers, int64 (N,H,W,NEIGHBORS), nearest
        first, and their shares of it (N,H,W,NEIGHBORS), which sum to 1."""
        a, b = (ab_N2HW[:, channel, :, :, None] - self.centers[:, channel] for channel in (0, 1))
        nearest = (a.square() + b.square()).topk(NEIGHBORS, dim=-1, largest=False)
        shares = F.softmax(-0.5 * (AB_SCALE / SIGMA) ** 2 * nearest.values, dim=-1)
        return nearest.indices, shares

    def cross_entropy(self, logits_NKHW: Tensor, ab_N2HW: Tensor) -> Tensor:
        """Mean over the logits' pixels of the weighted cross-entropy with the soft targets (equation 2), () [nats].

        ab: of the original, of any size, which is averaged to that of the logits. Differentiable in the logits.
        """
        with torch.no_grad():
            numbers, shares = self.soft_targets(F.interpolate(ab_N2HW, size=logits_NKHW.shape[-2:], mode="area"))
        surprise = -F.log_softmax(logits_NKHW.permute(0, 2, 3, 1), dim=-1).gather(-1, numbers)
        return (self.weights[numbers[..., 0]] * (shares * surprise).sum(-1)).mean()

    def count(self, ab_N2HW: Tensor) -> Tensor:
        """How many pixels are nearest to each bin, int64 (K,)."""
        numbers, _ = self.soft_targets(ab_N2HW)
        return torch.bincount(numbers[..., 0].flatten(), minlength=len(self.centers))

    def rebalance(self, counts_K: Tensor, strength: float) -> None:
        """Weigh the bins so that rare colors count more (equation 4).

        counts: pixels nearest to each bin, of which there is at least one. strength: 1 - lambda [0: all weights are 1,
        to below 1]. The mean weight of the pixels is 1. Computed in float64 on the CPU, the same everywhere.
        """
        centers, counts = (AB_SCALE * self.centers).cpu().double(), counts_K.cpu().double()
        kernel = torch.exp(-0.5 * ((centers[:, None] - centers).square().sum(-1)) / SIGMA**2)
        occurrence = (kernel / kernel.sum(0)) @ (counts / counts.sum())
        weights = 1 / (strength * occurrence + (1 - strength) / len(centers))
        self.weights.copy_(weights / (occurrence * weights).sum())


@lru_cache
def bin_centers(width: int) -> list[tuple[int, int]]:
    """(a*, b*) of the squares of this side, centered on its multiples, that hold colors of sRGB, in ascending order."""
    with torch.device("cpu"):  # whatever the networks are built on
        levels = torch.arange(0, 256, LEVEL_STEP, dtype=torch.uint8)
        colors = torch.cartesian_prod(levels, levels, levels)
        _, ab = rgb_to_lab(colors.view(1, 1, -1, 3), torch.float64)
        squares = (ab.view(2, -1) * AB_SCALE / width).round().long().T.tolist()
    return sorted({(width * a, width * b) for a, b in squares})
