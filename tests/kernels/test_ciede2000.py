"""CIEDE2000 as a loss: values against the metric's formula, precision in float32, gray and equal colors."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recolor_kernels import AB_SCALE, Impl, ciede2000, ciede2000_loss, reference
from tests.support import tolerances
from tests.support.color_samples import (
    DEVICE,
    DTYPES,
    IMPLS,
    assert_gradients_are_close,
    assert_value_is_close,
    laid_out,
    layouts,
    numbers,
    value_and_gradients,
)

KERNELS: tuple[Impl, ...] = ("auto", "triton")


def colors(seed: int, spread: float, *shape: int) -> Tensor:
    """Random ab (N,2,H,W), float32, normally distributed."""
    return spread * numbers(*(shape or (2, 2, 40, 32)), seed=seed)


def away(one: Tensor, other: Tensor) -> Tensor:
    """Other, on the other side of gray where hues are nearly opposite: there the mean hue is ill-conditioned."""
    return torch.where(F.cosine_similarity(one, other, dim=1).unsqueeze(1) < -0.9, -other, other)


def pair(spread: float, distance: float) -> tuple[Tensor, Tensor]:
    """Colors of about a chroma, and others at about a distance from them, both in the networks' range."""
    one = colors(0, spread)
    return one, away(one, one + colors(1, distance))


PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "apart": lambda: pair(0.3, 0.3),
    "near": lambda: pair(0.3, 1e-3),
    "nearly equal": lambda: pair(0.3, 1e-5),
    "vivid and near": lambda: pair(2.0, 1e-2),
    "pale": lambda: pair(1e-3, 1e-3),
    "a gray prediction": lambda: (torch.zeros(2, 2, 40, 32, device=DEVICE), colors(1, 0.3)),
    "a gray target": lambda: (colors(0, 0.3), torch.zeros(2, 2, 40, 32, device=DEVICE)),
    "one hue": lambda: (colors(0, 0.3), 0.5 * colors(0, 0.3)),
    "equal": lambda: (colors(0, 0.3), colors(0, 0.3)),
    "all gray": lambda: (torch.zeros(2, 2, 40, 32, device=DEVICE), torch.zeros(2, 2, 40, 32, device=DEVICE)),
}


def of_target(target: Tensor) -> Callable[..., Tensor]:
    """The loss as a function of the prediction and impl."""
    return lambda prediction, impl: ciede2000_loss(prediction, target, impl=impl)


@pytest.mark.parametrize("chroma", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("distance", [0.02, 0.2, 1.0])
def test_it_is_the_metrics_formula_at_equal_lightness(chroma: float, distance: float) -> None:
    one = chroma * (2 * torch.rand(1, 2, 100, 100, generator=torch.Generator().manual_seed(0)) - 1)
    other = one + distance * (2 * torch.rand(1, 2, 100, 100, generator=torch.Generator().manual_seed(1)) - 1)
    lightness = torch.full((1, 100, 100), 50.0, dtype=torch.float64)
    expected = reference.ciede2000(
        (lightness, *(AB_SCALE * one.double()).unbind(1)), (lightness, *(AB_SCALE * other.double()).unbind(1))
    )
    # Mean hue, and CIEDE2000 with it, has no limit at gray and jumps where hues are opposite.
    is_smooth = (torch.minimum(one.norm(dim=1), other.norm(dim=1)) * AB_SCALE > 0.5) & (
        F.cosine_similarity(one, other) > -0.99
    )
    torch.testing.assert_close(
        reference.chroma_difference(one, other)[is_smooth].double(),
        expected[is_smooth],
        atol=tolerances.CHROMA_DIFFERENCE,
        rtol=tolerances.CHROMA_DIFFERENCE_RELATIVE,
    )


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("kind", PAIRS)
def test_float32_loses_nothing_where_colors_nearly_meet_or_are_gray(kind: str, impl: Impl) -> None:
    prediction, target = PAIRS[kind]()
    value, gradients = value_and_gradients(of_target(target), [prediction], impl)
    exact, exact_gradients = value_and_gradients(of_target(target), [prediction.double()], "reference")
    assert value.dtype == torch.float32
    assert_value_is_close(value, exact)
    assert_gradients_are_close(gradients, exact_gradients, tolerances.CIEDE2000_GRADIENT)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_closed_form_in_float64_is_the_gradient_of_the_reference(kind: str) -> None:
    prediction, target = (color.cpu().double() for color in PAIRS[kind]())
    value, (gradient,) = value_and_gradients(of_target(target), [prediction], "auto")
    exact, (exact_gradient,) = value_and_gradients(of_target(target), [prediction], "reference")
    assert value.dtype == torch.float64
    rtol = tolerances.CIEDE2000_FLOAT64
    torch.testing.assert_close(value, exact, rtol=rtol, atol=0)
    torch.testing.assert_close(gradient, exact_gradient, rtol=0, atol=rtol * float(exact_gradient.abs().max()))


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_pass_gradcheck_where_the_weights_are_constant(impl: Impl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "chroma_stretch", lambda one, _: torch.full_like(one, 1.3))
    monkeypatch.setattr(reference, "hue_weight", lambda hue: torch.full_like(hue, 0.8))
    monkeypatch.setattr(reference, "hue_rotation", lambda hue, _: torch.full_like(hue, -1.1))
    prediction, target = (color.cpu().double()[:1, :, :3, :5].clone() for color in PAIRS["apart"]())
    prediction[:, :, 0], target[:, :, 1] = 0.01 * prediction[:, :, 0], 0.01 * target[:, :, 1]
    assert torch.autograd.gradcheck(
        lambda prediction: ciede2000_loss(prediction, target, impl=impl), prediction.requires_grad_(), eps=1e-7
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_nearly_opposite_hues_have_finite_values_and_gradients(impl: Impl) -> None:
    prediction = colors(0, 0.3)
    target = -prediction * (1 + colors(1, 1e-6))
    value, (gradient,) = value_and_gradients(of_target(target), [prediction], impl)
    exact, _ = value_and_gradients(of_target(target), [prediction.double()], "reference")
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=tolerances.CIEDE2000_OPPOSITE, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_swapped_colors_have_the_same_loss(impl: Impl) -> None:
    one, other = PAIRS["apart"]()
    assert_value_is_close(ciede2000_loss(one, other, impl=impl), ciede2000_loss(other, one, impl=impl))


@pytest.mark.parametrize("impl", KERNELS)
def test_the_reference_gives_the_target_the_gradient_of_a_prediction(impl: Impl) -> None:
    one, other = PAIRS["apart"]()
    other.requires_grad_()
    (expected,) = torch.autograd.grad(ciede2000_loss(one, other, impl="reference"), other)
    (found,) = torch.autograd.grad(ciede2000_loss(other, one, impl=impl), other)
    assert_gradients_are_close([found], [expected], tolerances.CIEDE2000_GRADIENT)


@pytest.mark.parametrize("impl", KERNELS)
def test_a_target_that_requires_a_gradient_is_refused(impl: Impl) -> None:
    prediction, target = PAIRS["apart"]()
    with pytest.raises(ValueError, match="expected a target without gradient"):
        ciede2000_loss(prediction, target.requires_grad_(), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_value_that_is_not_a_number_makes_the_loss_not_a_number(impl: Impl, place: int) -> None:
    prediction, target = PAIRS["apart"]()
    prediction.view(-1)[place] = torch.nan
    assert ciede2000_loss(prediction, target, impl=impl).isnan()


@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 9)),
        st.sampled_from([(1, 1, 1021), (2, 32, 32), (1, 37, 61), (3, 29, 31)]),
    ),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    strides=st.tuples(layouts, layouts),
    impl=st.sampled_from(KERNELS),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shapes_strides_and_types_agree_with_the_reference(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], strides: tuple[str, str], impl: Impl
) -> None:
    n, height, width = shape
    one = colors(0, 0.3, n, 2, height, width)
    prediction = laid_out(one.to(dtypes[0]), strides[0])
    target = laid_out(away(one, colors(1, 0.3, n, 2, height, width)).to(dtypes[1]), strides[1])
    value, gradients = value_and_gradients(of_target(target), [prediction], impl, scale=3)
    expected, expected_gradients = value_and_gradients(of_target(target), [prediction], "reference", scale=3)
    assert value.isnan() == (prediction.numel() == 0)
    assert_value_is_close(value, expected)
    assert gradients[0].dtype == dtypes[0]
    assert_gradients_are_close(gradients, expected_gradients, tolerances.CIEDE2000_GRADIENT)


@pytest.mark.parametrize("impl", IMPLS)
def test_float16_loses_no_gradient_to_underflow(impl: Impl) -> None:
    width = 25_001 if impl == "triton" and DEVICE == "cpu" else 500_000
    one = colors(0, 0.3, 1, 2, 1, width)
    prediction, target = one.half(), away(one, colors(1, 0.3, 1, 2, 1, width))
    _, found = value_and_gradients(of_target(target), [prediction], impl, scale=65536)
    _, expected = value_and_gradients(of_target(target), [prediction.float()], "reference", scale=65536)
    assert_gradients_are_close(found, expected, tolerances.CIEDE2000_GRADIENT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPU tensors")
@pytest.mark.parametrize("pixels", [1, 20 * 30, 2 * 20 * 30])
def test_a_cpu_takes_a_few_images_at_a_time(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = colors(0, 0.3, 5, 2, 20, 30), colors(1, 0.3, 5, 2, 20, 30)
    value, gradients = value_and_gradients(of_target(target), [prediction], "auto")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(ciede2000, "PIXELS_A_CORE", pixels)
    again, gradients_again = value_and_gradients(of_target(target), [prediction], "auto")
    assert_value_is_close(again, value)
    assert_gradients_are_close(gradients_again, gradients)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPU tensors")
def test_auto_is_the_closed_form_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of this folder's fixture
    prediction = torch.zeros(1, 2, 1, 1, requires_grad=True)
    assert "recolor" in ciede2000_loss(prediction, torch.ones(1, 2, 1, 1)).grad_fn.name()  # type: ignore[union-attr]
