"""Scores of images against scikit-image and NumPy in float64, one value an image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor

import recolor_kernels
from recolor_kernels import ColorMetrics, color_metrics
from tests.support import tolerances
from tests.support.color_samples import DEVICE, IMPLS, Array, image_laid_out, image_layouts, random_images

FIELDS = (
    *("ciede2000", "ab_error", "mse", "psnr", "colorfulness", "target_colorfulness"),
    *("colorfulness_ddcolor", "target_colorfulness_ddcolor"),
)
each_impl = pytest.mark.parametrize("impl", IMPLS)


def near_gray(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Grays, each channel off by two levels at most."""
    generator = torch.Generator().manual_seed(seed)
    gray = torch.randint(2, 254, (n, height, width, 1), generator=generator)
    noise = torch.randint(-2, 3, (n, height, width, 3), generator=generator)
    return (gray + noise).to(DEVICE, torch.uint8)


def saturated(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Channels of 0 or 255, or one level from it."""
    generator = torch.Generator().manual_seed(seed)
    full = 255 * torch.randint(0, 2, (n, height, width, 3), generator=generator)
    nudge = torch.randint(0, 2, (n, height, width, 3), generator=generator)
    return (full - nudge * full.sub(127).sign()).to(DEVICE, torch.uint8)


def one_level_off(rgb: Tensor, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    step = torch.randint(-1, 2, rgb.shape, generator=generator)
    return (rgb.cpu().int() + step).clamp(0, 255).to(DEVICE, torch.uint8)


PAIRS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "random": lambda n, h, w: (random_images(n, h, w), random_images(n, h, w, seed=1)),
    "near gray": lambda n, h, w: (near_gray(n, h, w), near_gray(n, h, w, seed=1)),
    "saturated": lambda n, h, w: (saturated(n, h, w), saturated(n, h, w, seed=1)),
    "gray against color": lambda n, h, w: (near_gray(n, h, w), saturated(n, h, w)),
    "a level off": lambda n, h, w: (random_images(n, h, w), one_level_off(random_images(n, h, w))),
    "a level off near gray": lambda n, h, w: (near_gray(n, h, w), one_level_off(near_gray(n, h, w))),
}
each_pair = pytest.mark.parametrize("kind", PAIRS)


def as_lab(rgb: Tensor) -> Array:
    lab: Array = rgb2lab(rgb.cpu().numpy() / 255.0)
    return lab


def plain_colorfulness(rgb: Tensor, absolute: bool) -> Array:
    """Hasler and Suesstrunk's formula in float64: (N,)."""
    red, green, blue = np.moveaxis(rgb.cpu().numpy().astype(np.float64), -1, 0)
    opponents = [red - green, (red + green) / 2 - blue]
    if absolute:
        opponents = [np.abs(opponent) for opponent in opponents]
    spread = np.sqrt(sum(opponent.var((1, 2)) for opponent in opponents))
    offset = np.sqrt(sum(opponent.mean((1, 2)) ** 2 for opponent in opponents))
    result: Array = spread + 0.3 * offset
    return result


def assert_close(found: Tensor, expected: Array, relative: float = 0.0, absolute: float = 0.0) -> None:
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=relative, atol=absolute)


def assert_all_is_right(found: ColorMetrics, prediction: Tensor, target: Tensor) -> None:
    """Every score against scikit-image and NumPy in float64."""
    assert found._fields == FIELDS
    assert [score.dtype for score in found] == [torch.float64] * len(FIELDS)
    assert [score.shape for score in found] == [(len(prediction),)] * len(FIELDS)
    lab, target_lab = as_lab(prediction), as_lab(target)
    assert_close(found.ciede2000, deltaE_ciede2000(target_lab, lab).mean((1, 2)), absolute=tolerances.DELTA_E)
    ab_error = np.abs(lab - target_lab)[..., 1:].mean((1, 2, 3))
    assert_close(found.ab_error, ab_error, absolute=tolerances.AB_ERROR)
    pairs = list(zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True))
    mse = np.array([mean_squared_error(one.astype(float), other.astype(float)) for one, other in pairs])
    assert_close(found.mse, mse, relative=tolerances.MSE_RELATIVE)
    differ = mse > 0
    psnr = np.full(len(pairs), np.inf)
    psnr[differ] = [peak_signal_noise_ratio(one, other) for one, other in pairs if not np.array_equal(one, other)]
    assert_close(found.psnr, psnr, absolute=tolerances.PSNR_DECIBELS)
    for name, rgb in (("colorfulness", prediction), ("target_colorfulness", target)):
        for suffix, absolute in (("", False), ("_ddcolor", True)):
            score = getattr(found, name + suffix)
            assert_close(score, plain_colorfulness(rgb, absolute), relative=tolerances.COLORFULNESS_RELATIVE)


@each_pair
@each_impl
@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 37, 41), (1, 64, 48)])
def test_scores_equal_scikit_image(kind: str, shape: tuple[int, int, int], impl: Any) -> None:
    prediction, target = PAIRS[kind](*shape)
    assert_all_is_right(color_metrics(prediction, target, impl=impl), prediction, target)


@each_impl
def test_images_larger_than_a_program_are_summed_whole(impl: Any) -> None:
    prediction, target = PAIRS["random"](2, 131, 127)
    assert_all_is_right(color_metrics(prediction, target, impl=impl), prediction, target)


@each_pair
@each_impl
def test_delta_e_of_every_single_pair_of_colors_is_right(kind: str, impl: Any) -> None:
    """Images of one pixel: no mean hides a color."""
    # the interpreter's run time grows with the number of programs
    count = 10 if impl == "triton" and DEVICE == "cpu" else 5000
    prediction, target = PAIRS[kind](count, 1, 1)
    expected = deltaE_ciede2000(as_lab(target), as_lab(prediction))[:, 0, 0]
    allowed = tolerances.DELTA_E_GRAY if "gray" in kind else tolerances.DELTA_E
    assert_close(color_metrics(prediction, target, impl=impl).ciede2000, expected, absolute=allowed)


@each_impl
def test_delta_e_between_all_corners_of_the_cube_and_middle_gray_is_right(impl: Any) -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    colors = torch.cat((torch.cartesian_prod(levels, levels, levels), torch.full((1, 3), 128, dtype=torch.uint8)))
    # An image per pair; in the slow interpreter an image per color, with all others.
    shape = (9, 1, 9, 3) if impl == "triton" and DEVICE == "cpu" else (81, 1, 1, 3)
    target = colors.repeat_interleave(9, dim=0).view(shape).to(DEVICE)
    prediction = colors.repeat(9, 1).view(shape).to(DEVICE)
    expected = deltaE_ciede2000(as_lab(target), as_lab(prediction)).mean((1, 2))
    assert_close(color_metrics(prediction, target, impl=impl).ciede2000, expected, absolute=tolerances.DELTA_E)
    assert_close(color_metrics(target, prediction, impl=impl).ciede2000, expected, absolute=tolerances.DELTA_E)


@each_impl
@pytest.mark.parametrize("make", [random_images, near_gray, saturated])
def test_equal_images_have_no_error_and_infinite_psnr(make: Callable[..., Tensor], impl: Any) -> None:
    rgb = make(2, 33, 35)
    found = color_metrics(rgb, rgb.clone(), impl=impl)
    assert found.ciede2000.abs().max() <= tolerances.DELTA_E_EQUAL
    zero = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    assert torch.equal(found.ab_error, zero)
    assert torch.equal(found.mse, zero)
    assert torch.equal(found.psnr, zero + torch.inf)
    assert torch.equal(found.colorfulness, found.target_colorfulness)
    assert torch.equal(found.colorfulness_ddcolor, found.target_colorfulness_ddcolor)


@each_impl
def test_gray_images_have_no_colorfulness(impl: Any) -> None:
    gray = random_images(2, 33, 35)[..., :1].expand(2, 33, 35, 3)
    found = color_metrics(gray, random_images(2, 33, 35, seed=1), impl=impl)
    zero = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    assert torch.equal(found.colorfulness, zero)
    assert torch.equal(found.colorfulness_ddcolor, zero)
    assert found.target_colorfulness.min() > 0


@each_impl
@pytest.mark.parametrize("color", [(255, 0, 0), (0, 0, 255), (255, 255, 0), (13, 200, 77)])
def test_an_image_of_one_color_has_the_colorfulness_of_its_mean(color: tuple[int, int, int], impl: Any) -> None:
    rgb = torch.tensor(color, dtype=torch.uint8, device=DEVICE).expand(1, 61, 67, 3)
    found = color_metrics(rgb, random_images(1, 61, 67), impl=impl)
    red, green, blue = color
    expected = np.array([0.3 * np.hypot(red - green, (red + green) / 2 - blue)])
    for score in (found.colorfulness, found.colorfulness_ddcolor):
        assert_close(score, expected, relative=tolerances.COLORFULNESS_RELATIVE)


@each_impl
def test_a_nearly_even_image_of_strong_color_keeps_its_small_variance(impl: Any) -> None:
    noise = random_images(1, 61, 67) % 3
    rgb = torch.tensor([252, 1, 0], dtype=torch.uint8, device=DEVICE) + noise
    found = color_metrics(rgb, rgb, impl=impl)
    for score, absolute in ((found.colorfulness, False), (found.colorfulness_ddcolor, True)):
        assert_close(score, plain_colorfulness(rgb, absolute), relative=tolerances.COLORFULNESS_RELATIVE)


@each_impl
def test_colorfulness_takes_opponents_with_their_sign_or_without(impl: Any) -> None:
    """Half red, half green: signed opponents vary and cancel, absolute ones are constant."""
    rgb = torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device=DEVICE)
    rgb[:, 0, :, 0] = rgb[:, 1, :, 1] = 100
    found = color_metrics(rgb, rgb, impl=impl)
    assert_close(found.colorfulness, np.array([100 + 0.3 * 50]), relative=tolerances.COLORFULNESS_RELATIVE)
    expected = np.array([0.3 * np.hypot(100, 50)])
    assert_close(found.colorfulness_ddcolor, expected, relative=tolerances.COLORFULNESS_RELATIVE)


@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 9)),
        st.sampled_from([(1, 1, 1021), (2, 32, 32), (1, 37, 61), (3, 29, 31)]),
    ),
    strides=st.tuples(image_layouts, image_layouts),
    kind=st.sampled_from(list(PAIRS)),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_strides_are_scored_correctly(
    shape: tuple[int, int, int], strides: tuple[str, str], kind: str
) -> None:
    prediction, target = PAIRS[kind](*shape)
    laid_out = image_laid_out(prediction, strides[0]), image_laid_out(target, strides[1])
    found = color_metrics(*laid_out, impl="triton")
    assert_all_is_right(found, prediction, target)
    for one, other in zip(found, color_metrics(prediction, target, impl="reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerances.METRIC_KERNEL, atol=tolerances.METRIC_KERNEL)


@each_impl
@pytest.mark.parametrize("shape", [(3, 7, 3), (2, 33, 35), (2, 64, 32)])
def test_an_images_scores_do_not_depend_on_the_rest_of_the_batch(shape: tuple[int, int, int], impl: Any) -> None:
    prediction, target = PAIRS["random"](*shape)
    whole = color_metrics(prediction, target, impl=impl)
    for number in range(len(prediction)):
        alone = color_metrics(prediction[number : number + 1], target[number : number + 1], impl=impl)
        for one, other in zip(alone, whole, strict=True):
            assert torch.equal(one, other[number : number + 1])


@each_impl
def test_an_equal_pair_in_a_batch_does_not_touch_its_neighbors(impl: Any) -> None:
    prediction, target = PAIRS["random"](3, 5, 7)
    target[1] = prediction[1]
    found = color_metrics(prediction, target, impl=impl)
    assert found.psnr.isinf().tolist() == [False, True, False]
    assert_all_is_right(found, prediction, target)


@each_impl
def test_same_bits_every_time_and_nothing_unwritten(impl: Any) -> None:
    prediction, target = PAIRS["random"](2, 37, 41)
    one, other = [color_metrics(prediction, target, impl=impl) for _ in range(2)]
    for first, second in zip(one, other, strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)


@each_impl
def test_swapped_images_have_swapped_colorfulness_and_the_same_errors(impl: Any) -> None:
    prediction, target = PAIRS["random"](2, 9, 11)
    found, swapped = color_metrics(prediction, target, impl=impl), color_metrics(target, prediction, impl=impl)
    assert torch.equal(found.colorfulness, swapped.target_colorfulness)
    assert torch.equal(found.target_colorfulness_ddcolor, swapped.colorfulness_ddcolor)
    assert torch.equal(found.mse, swapped.mse)
    assert torch.equal(found.ab_error, swapped.ab_error)


@each_impl
def test_no_images_give_no_scores_and_empty_images_give_nan(impl: Any) -> None:
    none = color_metrics(random_images(0, 4, 4), random_images(0, 4, 4), impl=impl)
    assert [score.shape for score in none] == [(0,)] * len(FIELDS)
    for height, width in ((0, 4), (4, 0), (0, 0)):
        empty = color_metrics(random_images(2, height, width), random_images(2, height, width), impl=impl)
        assert all(score.shape == (2,) and score.isnan().all() for score in empty)
        assert all(score.dtype == torch.float64 for score in empty)


def test_the_op_is_registered_correctly() -> None:
    torch.library.opcheck(torch.ops.recolor_kernels.color_metrics.default, PAIRS["random"](2, 4, 6))


def test_it_compiles_without_a_graph_break() -> None:
    prediction, target = PAIRS["random"](2, 4, 6)
    found = torch.compile(color_metrics, fullgraph=True, backend="aot_eager")(prediction, target)
    torch.testing.assert_close(tuple(found), tuple(color_metrics(prediction, target)), rtol=0, atol=0)


def _zeros(*shape: int, dtype: torch.dtype = torch.uint8, device: str = DEVICE) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another width": (lambda: color_metrics(_zeros(1, 4, 4, 3), _zeros(1, 4, 5, 3)), r"1, 4, 5, 3"),
    "another batch": (lambda: color_metrics(_zeros(1, 4, 4, 3), _zeros(2, 4, 4, 3)), r"2, 4, 4, 3"),
    "NCHW": (lambda: color_metrics(_zeros(1, 3, 4, 4), _zeros(1, 3, 4, 4)), r"1, 3, 4, 4"),
    "no batch": (lambda: color_metrics(_zeros(4, 4, 3), _zeros(4, 4, 3)), r"4, 4, 3"),
    "floating prediction": (
        lambda: color_metrics(_zeros(1, 4, 4, 3, dtype=torch.float32), _zeros(1, 4, 4, 3)),
        r"torch\.float32",
    ),
    "floating target": (
        lambda: color_metrics(_zeros(1, 4, 4, 3), _zeros(1, 4, 4, 3, dtype=torch.float32)),
        r"torch\.float32",
    ),
    "devices": (lambda: color_metrics(_zeros(1, 4, 4, 3), _zeros(1, 4, 4, 3, device="meta")), r"meta"),
    "impl": (
        lambda: color_metrics(_zeros(1, 4, 4, 3), _zeros(1, 4, 4, 3), impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_expected_and_what_arrived(name: str) -> None:
    call, arrived = WRONG[name]
    with pytest.raises(ValueError, match="expected") as error:
        call()
    assert error.match(arrived)


def test_metrics_are_public() -> None:
    assert {"color_metrics", "ColorMetrics"} <= set(recolor_kernels.__all__)


def test_delta_e_of_nearly_opposite_hues_is_right() -> None:
    colors = random_images(1, 400, 1000, seed=3).view(2, -1, 3)
    lab = as_lab(colors.view(1, -1, 1, 3)).reshape(2, -1, 3)
    directions = lab[..., 1:] / np.linalg.norm(lab[..., 1:], axis=-1, keepdims=True)
    chosen = np.argsort(np.linalg.norm(directions.sum(0), axis=-1))[:20]
    prediction, target = (colors[number, chosen].view(-1, 1, 1, 3) for number in range(2))
    expected = deltaE_ciede2000(as_lab(target), as_lab(prediction))[:, 0, 0]
    found = color_metrics(prediction, target, impl="triton").ciede2000
    # At 180 degrees the mean hue flips to the opposite one; rounding decides which side a pair is on.
    (a1, b1), (a2, b2) = lab[0, chosen, 1:].T, lab[1, chosen, 1:].T
    away = np.abs(a1 * b2 - a2 * b1) > 0.05
    assert away.sum() >= 10
    assert_close(found[torch.from_numpy(away)], expected[away], absolute=tolerances.DELTA_E)
