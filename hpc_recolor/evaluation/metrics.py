"""Numbers for colorized pictures against the originals, and against the gray copy that every colorizer must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_recolor.color_space import gray_copy, make_pair, to_pictures
from hpc_recolor.config import ColorName
from hpc_recolor.distributed import World, gather
from recolor_kernels import AB_SCALE, rgb_to_lab


@dataclass(frozen=True)
class Scores:
    """Means over held-out photographs: ab errors of model and gray copy [Lab units], L1 in the network's space."""

    ab_error: float
    gray_ab_error: float
    l1: float
    photographs: int


def ab_error(pictures_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> Tensor:
    """Mean absolute difference over a* and b* of each picture [Lab units]: float64 (N,)."""
    _, ab = rgb_to_lab(pictures_u8_NHWC)
    _, ab_true = rgb_to_lab(originals_u8_NHWC)
    return (ab - ab_true).double().abs().mean((1, 2, 3)) * AB_SCALE


@torch.no_grad()
def score(generator: nn.Module, originals_u8_NHWC: Tensor, color: ColorName, world: World) -> Scores:
    """Score a generator in eval mode on this rank's share of the photographs; all ranks get the scores of all.

    originals_u8_NHWC: every world.size-th photograph from world.rank on, uint8 (n,H,W,3); n may differ by one.
    """
    rows: list[tuple[float, float, float]] = []
    for start in range(0, len(originals_u8_NHWC), 16):  # a rank may have none
        original = originals_u8_NHWC[start : start + 16]
        condition, target = make_pair(original, color)
        output = generator(condition)
        model_error = ab_error(to_pictures(condition, output, color), original)
        gray_error = ab_error(gray_copy(condition, color), original)
        l1 = (output - target).double().abs().mean((1, 2, 3))
        rows += zip(model_error.tolist(), gray_error.tolist(), l1.tolist(), strict=True)
    shares = gather(world, rows)
    # In the order of the photographs, so that any number of ranks sums to the same bits.
    ordered = [shares[n % world.size][n // world.size] for n in range(sum(map(len, shares)))]
    model, gray, l1 = (sum(column) / len(ordered) for column in zip(*ordered, strict=True))
    return Scores(ab_error=model, gray_ab_error=gray, l1=l1, photographs=len(ordered))
