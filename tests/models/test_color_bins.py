"""Bins of ab: soft targets, decoding, the loss between them, and the weights of rare colors."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_recolor.models.color_bins import NEIGHBORS, SIGMA, ColorBins
from recolor_kernels import AB_SCALE, rgb_to_lab
from tests.support import tolerances

WIDTHS: tuple[Literal[10, 12], ...] = (10, 12)


def colors(number: int = 2, side: int = 16) -> Tensor:
    """ab (number,2,side,side) of random sRGB colors."""
    random = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, generator=random)
    return rgb_to_lab(rgb)[1]


def random_logits(bins: ColorBins, side: int = 4) -> Tensor:
    return 3 * torch.randn(2, len(bins.centers), side, side, generator=torch.Generator().manual_seed(1))


def dense_targets(bins: ColorBins, ab_N2HW: Tensor) -> Tensor:
    """Soft targets (N,K,H,W), straight from their definition, in float64."""
    distance = (ab_N2HW.double()[:, None] - bins.centers.double()[None, :, :, None, None]).norm(dim=2) * AB_SCALE
    limit = distance.sort(dim=1).values[:, NEIGHBORS - 1 : NEIGHBORS]
    shares = torch.where(distance <= limit, torch.exp(-0.5 * (distance / SIGMA) ** 2), 0)
    return shares / shares.sum(1, keepdim=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_bins_cover_the_gamut_and_little_else(width: int) -> None:
    bins = ColorBins(width, 1.0)
    apart = torch.cdist(bins.centers.double(), colors(1, 256).double()[0].flatten(1).T) * AB_SCALE
    assert float(apart.amin(0).max()) < width  # half a diagonal, or more at the corners of the gamut
    assert float(apart.amin(1).max()) < width
    assert len(set(map(tuple, bins.centers.tolist()))) == len(bins.centers)


@pytest.mark.parametrize("width", WIDTHS)
def test_soft_targets_are_the_nearest_bins_by_a_gaussian_and_sum_to_one(width: int) -> None:
    bins, ab = ColorBins(width, 1.0), colors()
    numbers, shares = bins.soft_targets(ab)
    assert numbers.shape == shares.shape == (2, 16, 16, NEIGHBORS)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 16, 16))
    assert bool((shares.diff(dim=-1) <= 0).all())  # nearest first
    found = torch.zeros(2, 16, 16, len(bins.centers)).scatter(-1, numbers, shares).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.double(), dense_targets(bins, ab), rtol=0, atol=tolerances.SOFT_TARGETS)


@pytest.mark.parametrize("temperature", [0.01, 0.38, 1.0])
def test_a_distribution_on_one_bin_is_decoded_to_its_center(temperature: float) -> None:
    bins = ColorBins(12, temperature)
    certain = 1e3 * torch.eye(len(bins.centers))[:, :, None, None]
    torch.testing.assert_close(bins.decode(certain)[:, :, 0, 0], bins.centers)


def test_decoding_goes_from_the_mean_to_the_mode_as_the_temperature_falls() -> None:
    logits = random_logits(ColorBins(10, 1.0))
    mean, annealed, mode = (ColorBins(10, temperature).decode(logits) for temperature in (1.0, 0.38, 1e-3))
    centers = ColorBins(10, 1.0).centers
    expected = (F.softmax(logits, dim=1)[:, :, None] * centers[None, :, :, None, None]).sum(1)
    torch.testing.assert_close(mean, expected)
    most_probable = centers[logits.argmax(1)].permute(0, 3, 1, 2)
    torch.testing.assert_close(mode, most_probable)
    assert float((annealed - most_probable).norm()) < float((mean - most_probable).norm())


def test_the_loss_is_cross_entropy_with_soft_targets_of_the_shrunk_colors() -> None:
    bins = ColorBins(12, 0.38)
    logits, ab = random_logits(bins, side=4).requires_grad_(), colors()
    found = bins.cross_entropy(logits, ab)
    targets = dense_targets(bins, F.avg_pool2d(ab, 4)).float()
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_gradients_flow_through_the_decoding() -> None:
    logits = random_logits(ColorBins(12, 0.38)).requires_grad_()
    (gradient,) = torch.autograd.grad(ColorBins(12, 0.38).decode(logits).square().sum(), logits)
    assert torch.isfinite(gradient).all()
    assert bool((gradient.abs().amax((0, 2, 3)) > 0).all())


def test_rare_colors_count_more_and_pixels_count_one_in_the_mean() -> None:
    bins = ColorBins(12, 0.38)
    gray = int(bins.centers.norm(dim=1).argmin())
    counts = torch.full((len(bins.centers),), 10)
    counts[gray] = 100_000
    errors = torch.full((1, len(bins.centers), 1, 1), 0.0)
    of_gray, of_color = torch.zeros(1, 2, 1, 1), bins.centers[0].view(1, 2, 1, 1)
    before = float(bins.cross_entropy(errors, of_gray)), float(bins.cross_entropy(errors, of_color))
    bins.rebalance(counts, 0.5)
    after = float(bins.cross_entropy(errors, of_gray)), float(bins.cross_entropy(errors, of_color))
    assert before[0] == pytest.approx(before[1])
    assert after[0] < before[0] < after[1]
    strong = bins.weights.clone()
    bins.rebalance(counts, 0.9)
    assert float(bins.weights[0] / bins.weights[gray]) > float(strong[0] / strong[gray])
    bins.rebalance(counts, 0.0)
    torch.testing.assert_close(bins.weights, torch.ones_like(bins.weights))


def test_weights_equal_the_papers() -> None:
    """Section 2.2: w = ((1 - lambda) p + lambda / Q) ** -1, times a factor that makes the mean over p one; p is
    smoothed by a Gaussian."""
    bins = ColorBins(10, 0.38)
    counts = torch.randint(1, 1000, (len(bins.centers),), generator=torch.Generator().manual_seed(2))
    bins.rebalance(counts, 0.7)
    centers, p = AB_SCALE * bins.centers.double().numpy(), counts.double().numpy() / int(counts.sum())
    smoothed = np.zeros_like(p)
    for center, share in zip(centers, p, strict=True):
        kernel = np.exp(-0.5 * ((centers - center) ** 2).sum(1) / SIGMA**2)
        smoothed += share * kernel / kernel.sum()
    weights = 1 / (0.7 * smoothed + 0.3 / len(p))
    np.testing.assert_allclose(bins.weights.numpy(), weights / (smoothed * weights).sum(), rtol=1e-5)


def test_pixels_are_counted_where_they_are_nearest() -> None:
    bins = ColorBins(12, 0.38)
    counts = bins.count(bins.centers[[3, 5, 5]].T.reshape(1, 2, 1, 3))
    assert counts.nonzero().flatten().tolist() == [3, 5]
    assert counts[[3, 5]].tolist() == [1, 2]


@pytest.mark.filterwarnings("default")  # torch's compiler inspects deprecated attributes
def test_loss_and_decoding_are_one_graph() -> None:
    bins = ColorBins(12, 0.38)
    logits, ab = random_logits(bins), colors()

    def both(logits: Tensor, ab: Tensor) -> Tensor:
        return bins.cross_entropy(logits, ab) + bins.decode(logits).square().mean()

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(logits, ab)
    torch.testing.assert_close(compiled, both(logits, ab))
