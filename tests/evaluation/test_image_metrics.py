"""Measurements against scikit-image, torchmetrics, and the papers' formulas in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as structural_similarity_of_scikit_image
from torchmetrics.functional.image import structural_similarity_index_measure

from hpc_recolor.evaluation import image_metrics
from hpc_recolor.evaluation.metric_registry import METRICS
from hpc_recolor.evaluation.perceptual import CLASSIFIERS
from tests.conftest import paint_photo
from tests.support import tolerances

Images = NDArray[np.uint8]


def pair(kind: str, height: int, width: int, seed: int) -> tuple[Images, Images]:
    """Two images, uint8 (1,H,W,3)."""
    random = np.random.default_rng(seed)
    one, other = random.integers(0, 256, (2, 1, height, width, 3), np.uint8)
    if kind == "smooth":
        one, other = (np.asarray(paint_photo(seed + more, width, height))[None] for more in (0, 1))
    elif kind == "near":
        other = np.clip(one.astype(int) + random.integers(-1, 2, one.shape), 0, 255).astype(np.uint8)
    elif kind == "flat":
        one, other = np.full_like(one, 200), np.full_like(one, 199)
    elif kind == "gray":
        one, other = (np.repeat(rgb[..., :1], 3, axis=-1) for rgb in (one, other))
    return one, other


def measured(one: Images, other: Images) -> dict[str, float]:
    found = image_metrics.measure(torch.from_numpy(one.copy()), torch.from_numpy(other.copy()))
    assert all(column.dtype == torch.float64 and column.shape == (1,) for column in found.values())
    return {name: float(column[0]) for name, column in found.items()}


def colorfulness_of_the_paper(rgb: Images, absolute: bool) -> float:
    """Hasler and Suesstrunk (2003), equations 1 to 3 with sRGB; DDColor's code takes absolute values first."""
    red, green, blue = (rgb[0, ..., channel].astype(float) for channel in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    if absolute:
        rg, yb = np.abs(rg), np.abs(yb)
    spread = np.sqrt(np.std(rg) ** 2 + np.std(yb) ** 2)
    return float(spread + 0.3 * np.sqrt(np.mean(rg) ** 2 + np.mean(yb) ** 2))


def similarity(one: Images, other: Images) -> float:
    """scikit-image's at the window, sigma, covariance and border that the protocol states."""
    padded = [np.pad(rgb[0], ((5, 5), (5, 5), (0, 0)), mode="reflect").astype(float) for rgb in (one, other)]
    return float(
        structural_similarity_of_scikit_image(
            *padded,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            K1=0.01,
            K2=0.03,
            channel_axis=-1,
        )
    )


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["random", "smooth", "near", "flat", "gray"]),
    height=st.integers(6, 24),
    width=st.integers(6, 24),
    seed=st.integers(0, 1000),
)
def test_measurements_agree_with_independent_implementations(kind: str, height: int, width: int, seed: int) -> None:
    one, other = pair(kind, height, width, seed)
    found = measured(one, other)
    labs = rgb2lab(one[0]), rgb2lab(other[0])
    expected = {
        "mae": np.abs(one.astype(float) - other).mean(),
        "ssim": similarity(one, other),
        "ciede2000": deltaE_ciede2000(*labs).mean(),
        "ab_error": np.abs(labs[0] - labs[1])[..., 1:].mean(),
        "colorfulness": colorfulness_of_the_paper(one, absolute=False),
        "colorfulness_ddcolor": colorfulness_of_the_paper(one, absolute=True),
    }
    if (one != other).any():
        expected["psnr"] = peak_signal_noise_ratio(other, one, data_range=255)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerances.INDEPENDENT), name
    of_other = image_metrics.colorfulness(torch.from_numpy(other.copy()))["colorfulness"]
    assert float(of_other[0]) == pytest.approx(colorfulness_of_the_paper(other, False), abs=tolerances.INDEPENDENT)


@pytest.mark.parametrize("kind", ["random", "smooth", "near", "flat", "gray"])
def test_structural_similarity_is_torchmetrics_own(kind: str) -> None:
    one, other = (torch.from_numpy(rgb.copy()) for rgb in pair(kind, 20, 31, seed=3))
    planes, other_planes = (rgb.permute(0, 3, 1, 2).double() for rgb in (one, other))
    expected = structural_similarity_index_measure(planes, other_planes, data_range=255.0, reduction="none")
    assert isinstance(expected, torch.Tensor)
    found = image_metrics.structural_similarity(one, other)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerances.SSIM_FLOAT64)


def test_equal_images_have_no_error_and_a_finite_psnr() -> None:
    one, _ = pair("smooth", 20, 16, seed=0)
    found = measured(one, one)
    assert found["mae"] == found["ciede2000"] == found["ab_error"] == 0
    assert found["ssim"] == pytest.approx(1, abs=tolerances.SSIM_FLOAT64)
    assert found["psnr"] == pytest.approx(58.92, abs=0.01)  # finite, so that a mean over images is


def test_a_measurement_does_not_depend_on_the_batch() -> None:
    pairs = [pair("smooth", 16, 16, seed) for seed in range(5)]
    images = [torch.from_numpy(np.concatenate([both[side] for both in pairs])) for side in (0, 1)]
    together = image_metrics.measure(images[0], images[1])
    for place in range(5):
        alone = image_metrics.measure(images[0][place : place + 1], images[1][place : place + 1])
        assert all(torch.equal(alone[name][0], together[name][place]) for name in together)


def test_one_color_is_put_on_each_photographs_lightness() -> None:
    images = np.concatenate([pair("smooth", 16, 20, seed)[0] for seed in range(3)])
    lab = rgb2lab(images)
    found = image_metrics.mean_ab(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), lab[..., 1:].mean((1, 2)), atol=tolerances.INDEPENDENT)
    lab[..., 1:] = (7.5, -3.25)
    expected = np.round(lab2rgb(lab) * 255)
    colored = image_metrics.with_one_color(torch.from_numpy(images), 7.5, -3.25)
    assert np.abs(colored.numpy() - expected).max() <= tolerances.ROUNDED_LEVELS


def test_color_is_kept_under_another_lightness() -> None:
    """Where both are in gamut: grays of another lightness, and a faint color."""
    originals = torch.from_numpy(np.concatenate([pair("smooth", 16, 20, seed)[0] for seed in range(3)]))
    originals = (originals.float() / 4 + 96).to(torch.uint8)
    faint = image_metrics.with_one_color(originals.flip(2), 5.0, -6.0)
    moved = rgb2lab(image_metrics.with_lightness_of(originals, faint).numpy())
    assert np.abs(moved[..., 0] - rgb2lab(originals.numpy())[..., 0]).max() < tolerances.LUMINANCE
    assert np.abs(moved[..., 1:] - rgb2lab(faint.numpy())[..., 1:]).max() < 2 * tolerances.LUMINANCE


def test_every_metric_is_in_the_registry() -> None:
    one, other = pair("random", 16, 16, seed=0)
    differences = {f"{key}_difference" for key in image_metrics.colorfulness(torch.from_numpy(one))}
    always = {metric.key for metric in METRICS if metric.needs is None}
    assert set(measured(one, other)) | differences == always
    of_classifiers = {f"{what}_{end}" for what in ("recognized", "frechet") for end in CLASSIFIERS}
    assert {metric.key for metric in METRICS} - always == {"lpips", "fid"} | of_classifiers
    assert all(metric.formula for metric in METRICS)
