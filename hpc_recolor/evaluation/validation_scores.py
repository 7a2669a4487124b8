"""Scores during training: colored images against the originals, and the gray copy that every colorizer must beat."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_recolor.config import ColorName, LossConfig
from hpc_recolor.evaluation.metric_registry import LOSSES
from hpc_recolor.models.color_space import gray_copy, make_pair, to_images
from hpc_recolor.runtime.distributed import World, gather
from recolor_kernels import color_metrics, discriminator_loss, l1_loss, patch_loss

BATCH_SIZE = 16

# (condition (N,1,H,W), image in the network's space (N,C,H,W)) -> logits (N,1,h,w)
Discriminator = Callable[[Tensor, Tensor], Tensor]


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
    l1: float  # this and the next two: the training losses, in the network's space
    adversarial: float
    discriminator: float


@torch.no_grad()
def score(
    generator: nn.Module,
    discriminator: Discriminator,
    originals_u8_NHWC: Tensor,
    color: ColorName,
    loss: LossConfig,
    world: World,
    shall_stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Score a generator in eval mode on this rank's share of the photographs; all ranks get the scores of all.

    discriminator: in eval mode too.
    originals_u8_NHWC: every world.size-th photograph from world.rank on, uint8 (n,H,W,3); n may differ by one.
    shall_stop: called by all ranks together, before every batch; once it returns True, all get None.
    """
    mine: list[dict[str, float]] = []
    for start in range(0, max(gather(world, len(originals_u8_NHWC))), BATCH_SIZE):
        if shall_stop():
            return None
        originals = originals_u8_NHWC[start : start + BATCH_SIZE]
        if len(originals):
            mine += _score_batch(generator, discriminator, originals, color, loss)
    shares = gather(world, mine)
    # In the order of the photographs, so that any number of ranks sums to the same bits.
    ordered = [shares[n % world.size][n // world.size] for n in range(sum(map(len, shares)))]
    means = {key: sum(one[key] for one in ordered) / len(ordered) for key in ordered[0]}
    return Scores(photographs=len(ordered), **means)


def _score_batch(
    generator: nn.Module, discriminator: Discriminator, originals_u8_NHWC: Tensor, color: ColorName, loss: LossConfig
) -> list[dict[str, float]]:
    """The scores of each image, by the names of `Scores`."""
    condition, target = make_pair(originals_u8_NHWC, color)
    output = generator(condition)
    model = color_metrics(to_images(condition, output, color), originals_u8_NHWC)
    gray = color_metrics(gray_copy(condition, color), originals_u8_NHWC)
    losses = network_losses(output, condition, target, discriminator, loss)
    columns = {
        "ab_error": model.ab_error,
        "gray_ab_error": gray.ab_error,
        "ciede2000": model.ciede2000,
        "gray_ciede2000": gray.ciede2000,
        "colorfulness": model.colorfulness,
        "original_colorfulness": model.target_colorfulness,
        **dict(zip(LOSSES, losses.unbind(1), strict=True)),
    }
    images = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in images]


def network_losses(
    output: Tensor, condition: Tensor, target: Tensor, discriminator: Discriminator, loss: LossConfig
) -> Tensor:
    """The training losses of each image, (N,3) float64 in the order of LOSSES: L1, adversarial, discriminator.

    output, target: (N,C,H,W), condition: (N,1,H,W), all in [-1, 1]. Without an adversarial loss the last two are 0.
    """
    rows = [[l1_loss(one[None], other[None])] for one, other in zip(output, target, strict=True)]
    if loss.adversarial == "none":
        rows = [[*row, torch.zeros_like(row[0]), torch.zeros_like(row[0])] for row in rows]
    else:
        fakes, reals = discriminator(condition, output), discriminator(condition, target)
        for row, fake, real in zip(rows, fakes, reals, strict=True):
            row += [patch_loss(fake, True, loss.adversarial), discriminator_loss(real, fake, loss.adversarial)]
    return torch.stack([torch.stack(row) for row in rows]).double()
