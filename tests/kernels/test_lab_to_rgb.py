"""RGB from Lab inside a network's graph: values and gradients, against scikit-image, float64 and the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab
from skimage.color.colorconv import rgb_from_xyz
from torch import Tensor

import recolor_kernels
from recolor_kernels import AB_SCALE, Impl, lab_to_rgb, lab_to_rgb_u8, rgb_float_to_u8, rgb_to_lab
from tests.support import tolerances
from tests.support.color_samples import (
    DEVICE,
    DTYPES,
    IMPLS,
    OPCHECK_READS_GRAD,
    SECOND_DERIVATIVES,
    Array,
    laid_out,
    layouts,
    numbers,
    random_images,
)

CUBE_ROOT_KNEE, SRGB_KNEE = 0.2068966, 0.0031308


def linear_rgb(lab: Tensor) -> Tensor:
    """Linear RGB (N,3,H,W) in float64, not clamped, except for scikit-image's clamp of Z."""
    lightness, a, b = ((lab[:, 0] + 1) * 50, lab[:, 1] * AB_SCALE, lab[:, 2] * AB_SCALE)
    y = (lightness + 16) / 116
    z = y - b / 200
    f = torch.stack((y + a / 500, y, torch.where(z > 0, z, 0)))
    xyz = torch.where(f > CUBE_ROOT_KNEE, f**3, (f - 16 / 116) / 7.787)
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64).view(3, 1, 1, 1)
    return torch.einsum("rx,xnhw->nrhw", torch.from_numpy(rgb_from_xyz), xyz * white)


def plain_lab_to_rgb(lab: Tensor) -> Tensor:
    """The expected lab_to_rgb, in float64 and in plain steps. The gamut's edge passes the gradient: by comparisons,
    since versions of torch.clamp differ there."""
    linear = linear_rgb(lab)
    curve = 1.055 * torch.where(linear > SRGB_KNEE, linear, 1) ** (1 / 2.4) - 0.055
    rgb = torch.where(linear > SRGB_KNEE, curve, 12.92 * linear)
    return torch.where(linear < 0, 0, torch.where(linear > 1, 1, rgb)) * 2 - 1


def far_from_kinks(lab: Tensor) -> Tensor:
    """(N,1,H,W): pixels whose gradient does not depend on the last bit of their linear RGB, or of Z."""
    linear = linear_rgb(lab)
    near = [(linear - kink).abs().amin(1, keepdim=True) for kink in (0, SRGB_KNEE, 1)]
    z = ((lab[:, :1] + 1) * 50 + 16) / 116 - lab[:, 2:] * AB_SCALE / 200
    return torch.stack([*near, z.abs()]).amin(0) > tolerances.RGB_EDGE


def colors_of_the_cube(count: int = 4000, seed: int = 0) -> Tensor:
    """Lab of colors inside the gamut and of all its corners, float64 (1,3,1,count + 8), on the CPU."""
    generator = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), axis=-1).reshape(8, 3)
    lab = rgb2lab(np.concatenate((generator.random((count, 3)), corners))[None])
    return torch.from_numpy(lab / [50, AB_SCALE, AB_SCALE] - [1, 0, 0]).permute(2, 0, 1)[None]


def any_colors(height: int = 40, width: int = 50, seed: int = 0) -> Tensor:
    """In and out of the gamut: (1,3,H,W) in [-1.2, 1.2], float64, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=generator) * 2.4 - 1.2


def gradients_of(lab: Tensor, upstream: Tensor, impl: Impl = "auto") -> Tensor:
    lightness, ab = lab[:, :1].detach().requires_grad_(), lab[:, 1:].detach().requires_grad_()
    found = torch.autograd.grad(lab_to_rgb(lightness, ab, impl=impl), (lightness, ab), upstream)
    return torch.cat(found, dim=1)


def plain_gradients(lab: Tensor, upstream: Tensor) -> Tensor:
    leaf = lab.double().cpu().requires_grad_()
    return torch.autograd.grad(plain_lab_to_rgb(leaf), leaf, upstream.double().cpu())[0]


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Gradients of pixels: the worst difference relative to 1 + the largest of a pixel's three."""
    difference = (found.double().cpu() - expected.double().cpu()).abs()
    worst = float((difference / (1 + expected.double().cpu().abs().amax(1, keepdim=True))).max())
    assert worst <= tolerance + one_step(found.dtype)


def one_step(dtype: torch.dtype) -> float:
    """The relative change by rounding to a 16-bit type."""
    return torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0


def as_numpy(rgb: Tensor) -> Array:
    return rgb.double().cpu().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("impl", "dtype", "tolerance"),
    [
        ("auto", torch.float32, tolerances.RGB_FLOAT32),
        ("triton", torch.float32, tolerances.RGB_FLOAT32),
        ("reference", torch.float32, tolerances.RGB_FLOAT32),
        ("reference", torch.float64, tolerances.RGB_FLOAT64),
    ],
)
def test_colors_in_gamut_equal_scikit_image(impl: Impl, dtype: torch.dtype, tolerance: float) -> None:
    lab = colors_of_the_cube().to(DEVICE, dtype)
    expected = 2 * lab2rgb(as_numpy(lab) * [50, AB_SCALE, AB_SCALE] + [50, 0, 0]) - 1
    found = lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl)
    assert found.dtype == dtype
    assert np.abs(as_numpy(found) - expected).max() <= tolerance


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_implementation_is_near_float64_in_and_out_of_the_gamut(impl: Impl, dtype: torch.dtype) -> None:
    lab = any_colors().to(DEVICE, dtype)
    found = lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl)
    assert found.dtype == dtype
    assert found.min() == -1
    assert found.max() == 1
    expected = plain_lab_to_rgb(lab.double().cpu())
    torch.testing.assert_close(found.double().cpu(), expected, rtol=one_step(dtype), atol=tolerances.RGB_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
def test_lab_of_an_image_comes_back(impl: Impl) -> None:
    rgb = random_images(2, 33, 37)
    found = lab_to_rgb(*rgb_to_lab(rgb), impl=impl)
    expected = rgb.permute(0, 3, 1, 2).double() / 127.5 - 1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerances.RGB_KERNEL)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_are_those_of_lab_to_rgb_u8(impl: Impl, dtype: torch.dtype) -> None:
    lab = torch.cat((any_colors(), any_colors(seed=1) / 2)).to(DEVICE, dtype)
    levels = rgb_float_to_u8(lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl)).int()
    difference = (levels - lab_to_rgb_u8(lab[:, :1], lab[:, 1:], impl=impl).int()).abs()
    assert difference.max() <= 1  # a level, where rounding falls the other way
    if dtype == torch.float32:
        assert difference.double().mean() <= tolerances.ROUNDED_THE_OTHER_WAY


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_agree_with_the_reference(impl: Impl, dtype: torch.dtype) -> None:
    lab = torch.cat((any_colors(), any_colors(seed=1) / 2)).to(DEVICE, dtype)
    upstream = numbers(*lab.shape, dtype=dtype, seed=2)
    found, expected = gradients_of(lab, upstream, impl), gradients_of(lab, upstream, "reference")
    assert found.dtype == dtype
    far = far_from_kinks(lab.double().cpu()).to(DEVICE)
    assert_near(found * far, expected * far, tolerances.RGB_GRADIENT_KERNEL)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_near_float64(impl: Impl) -> None:
    lab = torch.cat((any_colors(), any_colors(seed=1) / 2)).to(DEVICE, torch.float32)
    upstream = numbers(*lab.shape, seed=2)
    far = far_from_kinks(lab.double().cpu())
    found = gradients_of(lab, upstream, impl).double().cpu() * far
    assert_near(found, plain_gradients(lab, upstream) * far, tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_pass_gradcheck(impl: Impl) -> None:
    lab = torch.cat((any_colors(3, 4), any_colors(3, 4, seed=1) / 3))
    assert far_from_kinks(lab).all()
    lightness, ab = lab[:, :1].requires_grad_(), lab[:, 1:].requires_grad_()
    assert torch.autograd.gradcheck(lambda lightness, ab: lab_to_rgb(lightness, ab, impl=impl), (lightness, ab))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("side", [-1e-4, 1e-4])
@pytest.mark.parametrize("knee", ["cube root", "sRGB"])
def test_gradients_pass_gradcheck_on_both_sides_of_the_knees(knee: str, side: float, impl: Impl) -> None:
    lab = at_knee(knee, side)
    lightness, ab = lab[:, :1].requires_grad_(), lab[:, 1:].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda lightness, ab: lab_to_rgb(lightness, ab, impl=impl), (lightness, ab), eps=1e-7
    )


def at_knee(knee: str, side: float) -> Tensor:
    """A pixel (1,3,1,1) in float64 at a knee, or above or below it by `side`, relative: at that of all three cube roots
    (a gray), or at that of linear red (green and blue are well inside)."""
    if knee == "cube root":
        return torch.tensor([(116 * CUBE_ROOT_KNEE * (1 + side) - 16) / 50 - 1, 0, 0]).double().view(1, 3, 1, 1)
    linear = np.array([SRGB_KNEE * (1 + side), 0.3, 0.2])
    xyz = np.linalg.inv(rgb_from_xyz) @ linear / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > CUBE_ROOT_KNEE**3, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = [(116 * f[1] - 16) / 50 - 1, 500 * (f[0] - f[1]) / AB_SCALE, 200 * (f[1] - f[2]) / AB_SCALE]
    return torch.tensor(lab, dtype=torch.float64).view(1, 3, 1, 1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("side", [-1e-3, 1e-3])
@pytest.mark.parametrize("knee", ["cube root", "sRGB"])
def test_each_side_of_a_knee_has_its_own_slope(knee: str, side: float, impl: Impl) -> None:
    lab = at_knee(knee, side).to(DEVICE, torch.float32)
    upstream = torch.tensor([1.0, -2.0, 3.0], device=DEVICE).view(1, 3, 1, 1)
    assert_near(gradients_of(lab, upstream, impl), plain_gradients(lab, upstream), tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
def test_at_the_cube_root_knee_itself_both_slopes_are_equal(impl: Impl) -> None:
    lab = at_knee("cube root", 0).to(DEVICE, torch.float32)
    upstream = torch.tensor([1.0, -2.0, 3.0], device=DEVICE).view(1, 3, 1, 1)
    assert_near(gradients_of(lab, upstream, impl), plain_gradients(lab, upstream), tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_black_is_at_the_edge_of_the_gamut_and_passes_its_gradient(impl: Impl, dtype: torch.dtype) -> None:
    black = torch.tensor([-1.0, 0.0, 0.0], device=DEVICE, dtype=dtype).view(1, 3, 1, 1)
    assert torch.equal(lab_to_rgb(black[:, :1], black[:, 1:], impl=impl), torch.full_like(black, -1))
    upstream = torch.tensor([1.0, -2.0, 3.0], device=DEVICE, dtype=dtype).view(1, 3, 1, 1)
    expected = plain_gradients(black, upstream)
    assert (expected != 0).all()
    assert_near(gradients_of(black, upstream, impl), expected, tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_white_is_outside_in_red_and_blue_and_inside_in_green(impl: Impl, dtype: torch.dtype) -> None:
    white = torch.tensor([1.0, 0.0, 0.0], device=DEVICE, dtype=dtype).view(1, 3, 1, 1)
    inside = (linear_rgb(white.double().cpu()) <= 1).flatten().tolist()
    assert inside == [False, True, False]  # by 1e-5 and 8e-5: the matrices' grays are not quite D65's
    for channel, passes in enumerate(inside):
        upstream = torch.zeros(1, 3, 1, 1, device=DEVICE, dtype=dtype)
        upstream[:, channel] = 1
        found = gradients_of(white, upstream, impl)
        assert (found != 0).any() == passes
        assert_near(found, plain_gradients(white, upstream), tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("lab", "value"),
    [((1.2, 0.0, 0.0), 1.0), ((-1.2, 0.0, 0.0), -1.0), ((5.0, 0.0, 0.0), 1.0)],
)
def test_outside_the_gamut_the_gradient_is_zero(lab: tuple[float, ...], value: float, impl: Impl) -> None:
    color = torch.tensor(lab, device=DEVICE).view(1, 3, 1, 1)
    assert torch.equal(lab_to_rgb(color[:, :1], color[:, 1:], impl=impl), torch.full_like(color, value))
    assert torch.equal(gradients_of(color, torch.ones_like(color), impl), torch.zeros_like(color))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_channel_outside_passes_nothing_while_the_others_pass(impl: Impl) -> None:
    lab = torch.tensor([0.0, 0.9, 0.3], device=DEVICE).view(1, 3, 1, 1)
    linear = linear_rgb(lab.double().cpu()).flatten()
    assert (linear < 0).tolist() == [False, True, False]
    for channel in range(3):
        upstream = torch.zeros(1, 3, 1, 1, device=DEVICE)
        upstream[:, channel] = 1
        found = gradients_of(lab, upstream, impl)
        assert bool((found != 0).any()) == (0 <= linear[channel] <= 1)
        assert_near(found, plain_gradients(lab, upstream), tolerances.RGB_GRADIENT_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_finite_from_black_to_white_and_far_beyond(impl: Impl) -> None:
    axis = torch.tensor([-1e4, -3.0, -1.0, -0.99, -0.5, 0.0, 0.5, 1.0, 3.0, 1e4], device=DEVICE)
    lab = torch.cartesian_prod(axis, axis, axis).T.reshape(1, 3, 10, 100)
    assert lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl).abs().max() == 1
    assert gradients_of(lab, torch.ones_like(lab), impl).isfinite().all()


@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 9)),
        st.sampled_from([(1, 1, 1021), (2, 32, 32), (1, 37, 61), (3, 29, 31)]),
    ),
    dtype=st.sampled_from(DTYPES),
    lightness_layout=layouts,
    ab_layout=layouts,
    upstream_layout=layouts,
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_strides_and_type_agree_with_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, lightness_layout: str, ab_layout: str, upstream_layout: str
) -> None:
    n, height, width = shape
    # Well inside the gamut, so that no kink is near.
    lightness = laid_out(numbers(n, 1, height, width, dtype=dtype).clamp(-2, 2) / 10, lightness_layout)
    ab = laid_out(numbers(n, 2, height, width, dtype=dtype, seed=1).clamp(-2, 2) / 40, ab_layout)
    upstream = laid_out(numbers(n, 3, height, width, dtype=dtype, seed=2), upstream_layout)
    results = {}
    for impl in IMPLS[1:]:
        leaves = lightness.detach().requires_grad_(), ab.detach().requires_grad_()
        value = lab_to_rgb(*leaves, impl=impl)
        results[impl] = [value.detach(), *torch.autograd.grad(value, leaves, upstream)]
    assert results["triton"][0].shape == (n, 3, height, width)
    rtol = tolerances.RGB_GRADIENT_KERNEL + one_step(dtype)
    for found, expected in zip(results["triton"], results["reference"], strict=True):
        assert found.dtype == expected.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=rtol, atol=tolerances.RGB_KERNEL)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_upstream_gradient_without_strides_is_read_correctly(impl: Impl) -> None:
    lab = any_colors(5, 7).to(DEVICE, torch.float32)
    one = torch.ones((), device=DEVICE)
    expanded, held = one.expand(1, 3, 5, 7), torch.ones(1, 3, 5, 7, device=DEVICE)
    assert torch.equal(gradients_of(lab, expanded, impl), gradients_of(lab, held, impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_gradient_goes_only_to_the_tensor_that_asks(impl: Impl) -> None:
    lab = any_colors(5, 7).to(DEVICE, torch.float32)
    both = gradients_of(lab, torch.ones_like(lab), impl)
    for asks in (0, 1):
        leaves = [lab[:, :1].detach(), lab[:, 1:].detach()]
        leaves[asks].requires_grad_()
        lab_to_rgb(leaves[0], leaves[1], impl=impl).sum().backward()  # type: ignore[no-untyped-call]
        assert leaves[1 - asks].grad is None
        assert torch.equal(leaves[asks].grad, both[:, 1:] if asks else both[:, :1])  # type: ignore[arg-type]
    assert not lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl).requires_grad


@pytest.mark.parametrize("impl", IMPLS)
def test_backward_may_run_again(impl: Impl) -> None:
    lab = any_colors(5, 7).to(DEVICE, torch.float32)
    lightness, ab = lab[:, :1].detach().requires_grad_(), lab[:, 1:]
    total = lab_to_rgb(lightness, ab, impl=impl).sum()
    (first,) = torch.autograd.grad(total, lightness, retain_graph=True)
    (second,) = torch.autograd.grad(total, lightness)
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("way", SECOND_DERIVATIVES)
def test_a_second_derivative_is_refused(way: str, impl: Impl) -> None:
    lab = any_colors(3, 4).to(DEVICE, torch.float32)
    leaves = lab[:, :1].detach().requires_grad_(), lab[:, 1:].detach().requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative"):
        SECOND_DERIVATIVES[way](lab_to_rgb(*leaves, impl=impl).sum(), leaves)


def test_the_reference_has_a_second_derivative() -> None:
    lab = any_colors(2, 3) / 3
    assert far_from_kinks(lab).all()
    lightness, ab = lab[:, :1].requires_grad_(), lab[:, 1:].requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda lightness, ab: lab_to_rgb(lightness, ab, impl="reference"), (lightness, ab)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_same_bits_every_time_and_nothing_unwritten(impl: Impl) -> None:
    lab = any_colors(37, 41).to(DEVICE, torch.float32)
    upstream = numbers(*lab.shape, seed=2)
    values = [lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl) for _ in range(2)]
    gradients = [gradients_of(lab, upstream, impl) for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(*gradients)


@OPCHECK_READS_GRAD
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_op_is_registered_correctly(requires_grad: bool) -> None:
    lab = (any_colors(4, 6) / 3).to(DEVICE, torch.float32)
    leaves = (lab[:, :1].contiguous().requires_grad_(requires_grad), lab[:, 1:].contiguous())
    torch.library.opcheck(torch.ops.recolor_kernels.lab_to_rgb.default, leaves)


def test_it_compiles_with_its_gradient_without_a_graph_break() -> None:
    lab = any_colors(4, 6).to(DEVICE, torch.float32)

    def step(lightness: Tensor, ab: Tensor) -> Tensor:
        return (lab_to_rgb(lightness, ab) * 3).square().mean()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = lab[:, :1].detach().requires_grad_(), lab[:, 1:].detach().requires_grad_()
        value = function(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def _zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "two channels of L": (lambda: lab_to_rgb(_zeros(1, 2, 4, 4), _zeros(1, 2, 4, 4)), r"1, 2, 4, 4"),
    "three channels of ab": (lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(1, 3, 4, 4)), r"1, 3, 4, 4"),
    "another width": (lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(1, 2, 4, 5)), r"1, 2, 4, 5"),
    "another batch": (lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(2, 2, 4, 4)), r"2, 2, 4, 4"),
    "no batch": (lambda: lab_to_rgb(_zeros(1, 4, 4), _zeros(2, 4, 4)), r"1, 4, 4"),
    "mixed types": (lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(1, 2, 4, 4, dtype=torch.bfloat16)), r"bfloat16"),
    "integers": (
        lambda: lab_to_rgb(_zeros(1, 1, 4, 4, dtype=torch.int32), _zeros(1, 2, 4, 4, dtype=torch.int32)),
        r"torch\.int32",
    ),
    "mixed devices": (lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(1, 2, 4, 4, device="meta")), r"meta"),
    "float64 for Triton": (
        lambda: lab_to_rgb(
            _zeros(1, 1, 4, 4, dtype=torch.float64), _zeros(1, 2, 4, 4, dtype=torch.float64), impl="triton"
        ),
        r"torch\.float64",
    ),
    "another impl": (
        lambda: lab_to_rgb(_zeros(1, 1, 4, 4), _zeros(1, 2, 4, 4), impl="cuda"),  # type: ignore[arg-type]
        r"impl='cuda'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_expected_and_what_arrived(name: str) -> None:
    call, arrived = WRONG[name]
    with pytest.raises(ValueError, match="expected") as error:
        call()
    assert error.match(arrived)


def test_it_is_public() -> None:
    assert "lab_to_rgb" in recolor_kernels.__all__


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channel", range(3))
def test_nan_stays_nan(channel: int, impl: Impl) -> None:
    lab = torch.zeros(1, 3, 2, 2, device=DEVICE)
    lab[0, channel, 0, 0] = torch.nan
    rgb = lab_to_rgb(lab[:, :1], lab[:, 1:], impl=impl)
    assert rgb[0, :, 0, 0].isnan().all()
    assert rgb[0, :, 1, 1].isfinite().all()
