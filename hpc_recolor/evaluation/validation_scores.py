"""Numbers for colorized pictures against the originals, and against the gray copy that every colorizer must beat."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_recolor.config import ColorName, LossConfig
from hpc_recolor.models.color_space import gray_copy, make_pair, to_pictures
from hpc_recolor.runtime.distributed import World, gather
from recolor_kernels import color_metrics, discriminator_loss, l1_loss, patch_loss

BATCH_SIZE = 16

# (condition, picture in the network's space) -> logits
Judge = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scores:
    """Means over held-out photographs, of the model and of the gray copy."""

    photographs: int
    ab_error: float  # [Lab units]
    gray_ab_error: float
    ciede2000: float  # [Delta E 2000]
    gray_ciede2000: float
    colorfulness: float  # Hasler and Suesstrunk [levels]
    original_colorfulness: float
    l1: float  # in the network's space, as the two that follow: the losses of training
    adversarial: float
    discriminator: float


@torch.no_grad()
def score(
    generator: nn.Module,
    judge: Judge,
    originals_u8_NHWC: Tensor,
    color: ColorName,
    loss: LossConfig,
    world: World,
    shall_stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Score a generator in eval mode on this rank's share of the photographs; all ranks get the scores of all.

    judge: the discriminator, in eval mode too.
    originals_u8_NHWC: every world.size-th photograph from world.rank on, uint8 (n,H,W,3); n may differ by one.
    shall_stop: asked by all ranks together, before every batch; if it says yes, all get None.
    """
    rows: list[tuple[float, ...]] = []
    for start in range(0, max(gather(world, len(originals_u8_NHWC))), BATCH_SIZE):
        if shall_stop():
            return None
        original = originals_u8_NHWC[start : start + BATCH_SIZE]
        if not len(original):
            continue
        condition, target = make_pair(original, color)
        output = generator(condition)
        model = color_metrics(to_pictures(condition, output, color), original)
        gray = color_metrics(gray_copy(condition, color), original)
        columns = (
            model.ab_error,
            gray.ab_error,
            model.ciede2000,
            gray.ciede2000,
            model.colorfulness,
            model.target_colorfulness,
            *network_losses(output, condition, target, judge, loss).unbind(1),
        )
        rows += map(tuple, torch.stack(columns, dim=1).tolist())
    shares = gather(world, rows)
    # In the order of the photographs, so that any number of ranks sums to the same bits.
    ordered = [shares[n % world.size][n // world.size] for n in range(sum(map(len, shares)))]
    means = [sum(column) / len(ordered) for column in zip(*ordered, strict=True)]
    return Scores(len(ordered), *means)


def network_losses(output: Tensor, condition: Tensor, target: Tensor, judge: Judge, loss: LossConfig) -> Tensor:
    """The losses of training, each picture's own: (N,3) float64 of L1, adversarial, and the discriminator's.

    output, target: (N,C,H,W), condition: (N,1,H,W), all in [-1, 1]. Without an adversary the last two are 0.
    """
    rows = [[l1_loss(one[None], other[None])] for one, other in zip(output, target, strict=True)]
    if loss.adversarial == "none":
        rows = [[*row, torch.zeros_like(row[0]), torch.zeros_like(row[0])] for row in rows]
    else:
        fakes, reals = judge(condition, output), judge(condition, target)
        for row, fake, real in zip(rows, fakes, reals, strict=True):
            row += [patch_loss(fake, True, loss.adversarial), discriminator_loss(real, fake, loss.adversarial)]
    return torch.stack([torch.stack(row) for row in rows]).double()
