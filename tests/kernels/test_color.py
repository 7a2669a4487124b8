"""The conversion kernels, on a GPU or in Triton's interpreter, against the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recolor_kernels import Impl, color, lab_to_rgb_u8, reference, rgb_to_gray, rgb_to_lab
from recolor_kernels.launch import pixels_per_thread
from tests.support import tolerances
from tests.support.color_samples import DEVICE, DTYPES, IMPLS, image_laid_out, image_layouts, lab_units, random_images


@pytest.fixture(scope="module", params=range(16))
def sixteenth_of_all_colors(request: pytest.FixtureRequest) -> Tensor:
    """The 1,048,576 colors with sixteen levels of red: one image (1,1024,1024,3)."""
    red = torch.arange(16 * request.param, 16 * request.param + 16, dtype=torch.uint8)
    levels = torch.arange(256, dtype=torch.uint8)
    return torch.cartesian_prod(red, levels, levels).view(1, 1024, 1024, 3).to(DEVICE)


def allowed(dtype: torch.dtype) -> float:
    return tolerances.KERNEL_FLOAT32 if dtype == torch.float32 else tolerances.KERNEL_16_BITS


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's run time grows with the number of programs."""
    if DEVICE == "cpu":
        monkeypatch.setattr(color, "PIXELS_PER_PROGRAM", 2**18)


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
def test_every_color_is_exact_and_comes_back(sixteenth_of_all_colors: Tensor) -> None:
    truth = lab_units(*reference.rgb_to_lab(sixteenth_of_all_colors, torch.float64))
    lightness, ab = rgb_to_lab(sixteenth_of_all_colors, impl="triton")
    assert (lab_units(lightness, ab) - truth).abs().max() <= tolerances.LAB_KERNEL
    assert torch.equal(lab_to_rgb_u8(lightness, ab, impl="triton"), sixteenth_of_all_colors)


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
def test_what_is_rounded_to_16_bits_is_close_for_every_color(
    sixteenth_of_all_colors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = lab_units(*reference.rgb_to_lab(sixteenth_of_all_colors, torch.float64))
    with monkeypatch.context() as patch:  # the cheaper polynomials, written in float32
        patch.setattr(color, "is_exact", lambda dtype: False)
        lightness, ab = rgb_to_lab(sixteenth_of_all_colors, impl="triton")
    assert (lab_units(lightness, ab) - truth).abs().max() <= tolerances.LAB_KERNEL_16_BITS
    # Triton's interpreter truncates to bfloat16, a GPU rounds: in the interpreter, round here.
    cut = DEVICE == "cpu"
    written = (lightness.bfloat16(), ab.bfloat16())
    rounding = lab_units(*(written if cut else rgb_to_lab(sixteenth_of_all_colors, torch.bfloat16, impl="triton")))
    assert (rounding - truth).abs().max() <= tolerances.LAB_BFLOAT16_WORST
    assert (rounding - truth).abs().mean() <= tolerances.LAB_BFLOAT16_MEAN


@pytest.mark.parametrize(
    ("shape", "dtype", "together"),
    [
        ((1, 1, 1), torch.float32, 1),
        ((2, 3, 5), torch.bfloat16, 1),
        ((2, 37, 41), torch.float16, 1),
        ((3, 2, 2), torch.float32, 4),
        ((2, 6, 6), torch.float16, 4),
        ((1, 64, 33), torch.float32, 4),
        ((3, 4, 4), torch.float16, 8),
        ((2, 48, 47), torch.float16, 8),
    ],
)
def test_kernels_agree_with_the_reference_by_any_group_of_pixels(
    shape: tuple[int, int, int], dtype: torch.dtype, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def noted(*rgb: Tensor, planes: torch.dtype) -> int:
        taken.append(pixels_per_thread(*rgb, planes=planes))
        return taken[-1]

    monkeypatch.setattr(color, "pixels_per_thread", noted)
    rgb = random_images(*shape)
    for kernel, plain in ((rgb_to_lab, reference.rgb_to_lab), (rgb_to_gray, reference.rgb_to_gray)):
        for found, expected in zip(kernel(rgb, dtype, impl="triton"), plain(rgb, dtype), strict=True):
            torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=allowed(dtype))
    lab = reference.rgb_to_lab(rgb, dtype)
    assert _worst(lab_to_rgb_u8(*lab, impl="triton").int() - reference.lab_to_rgb_u8(*lab).int()) <= 1
    assert taken == [together] * 3


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    dtype=st.sampled_from(DTYPES),
    strides=image_layouts,
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_strides_and_type_agree_with_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, strides: str
) -> None:
    rgb = image_laid_out(random_images(*shape), strides)
    for kernel, plain in ((rgb_to_lab, reference.rgb_to_lab), (rgb_to_gray, reference.rgb_to_gray)):
        for found, expected in zip(kernel(rgb, dtype, impl="triton"), plain(rgb, dtype), strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=allowed(dtype))
    lightness, ab = reference.rgb_to_lab(rgb, dtype)
    back = lab_to_rgb_u8(lightness.transpose(2, 3), ab.transpose(2, 3), impl="triton").int()
    expected_back = reference.lab_to_rgb_u8(lightness.transpose(2, 3), ab.transpose(2, 3)).int()
    assert _worst(back - expected_back) <= 1  # a level, where rounding falls the other way


def _worst(difference: Tensor) -> int:
    return int(difference.abs().max()) if difference.numel() else 0


def test_colors_out_of_gamut_are_clamped_as_in_the_reference() -> None:
    axis = torch.linspace(-1.2, 1.2, 13, device=DEVICE)
    lab = torch.cartesian_prod(axis, axis, axis).T.reshape(1, 3, 13, 169)
    found = lab_to_rgb_u8(lab[:, :1], lab[:, 1:], impl="triton")
    assert _worst(found.int() - reference.lab_to_rgb_u8(lab[:, :1], lab[:, 1:]).int()) <= 1
    assert found.min() == 0
    assert found.max() == 255


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], Callable[[], tuple[Any, ...]]]] = [
    (rgb_to_lab, (False,), lambda: (random_images(2, 4, 6), torch.float32)),
    (rgb_to_gray, (True,), lambda: (random_images(2, 4, 6), torch.float32)),
    (lab_to_rgb_u8, (), lambda: reference.rgb_to_lab(random_images(2, 4, 6))),
]
NAMES = [function.__name__ for function, _, _ in CALLS]


@pytest.mark.parametrize(("function", "of_the_op", "arguments"), CALLS, ids=NAMES)
def test_ops_are_registered_correctly(
    function: Callable[..., Any], of_the_op: tuple[Any, ...], arguments: Callable[[], tuple[Any, ...]]
) -> None:
    op = getattr(torch.ops.recolor_kernels, function.__name__).default
    torch.library.opcheck(op, (*arguments(), *of_the_op))


@pytest.mark.parametrize(("function", "of_the_op", "arguments"), CALLS, ids=NAMES)
def test_ops_compile_without_a_graph_break(
    function: Callable[..., Any], of_the_op: tuple[Any, ...], arguments: Callable[[], tuple[Any, ...]]
) -> None:
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments())
    expected = function(*arguments(), impl="reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerances.KERNEL_FLOAT32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", ["contiguous", "shifted by a byte"])
@pytest.mark.parametrize("shape", [(0, 2, 2), (1, 1, 1), (2, 0, 3), (3, 2, 2), (2, 3, 5), (1, 37, 41), (2, 32, 34)])
def test_channels_last_holds_the_bits_of_contiguous_results(
    shape: tuple[int, int, int], strides: str, dtype: torch.dtype, impl: Impl
) -> None:
    rgb = image_laid_out(random_images(*shape), strides)
    for convert in (rgb_to_lab, rgb_to_gray):
        contiguous = convert(rgb, dtype, impl=impl)
        for found, expected in zip(convert(rgb, dtype, torch.channels_last, impl), contiguous, strict=True):
            assert found.dtype == dtype
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert expected.is_contiguous()
            assert torch.equal(found, expected)


def test_channels_last_compiles_without_a_graph_break() -> None:
    for convert in (rgb_to_lab, rgb_to_gray):
        compiled = torch.compile(convert, fullgraph=True, backend="aot_eager")
        found = compiled(random_images(2, 4, 6), memory_format=torch.channels_last)
        expected = convert(random_images(2, 4, 6), memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert [plane.stride() for plane in found] == [plane.stride() for plane in expected]


def test_another_memory_format_is_named() -> None:
    for convert in (rgb_to_lab, rgb_to_gray):
        with pytest.raises(ValueError, match=r"expected.*channels_last.*got torch\.channels_last_3d"):
            convert(random_images(1, 2, 2), memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_types_that_kernels_do_not_write_are_named(dtype: torch.dtype) -> None:
    for function in (rgb_to_lab, rgb_to_gray):
        with pytest.raises(ValueError, match=f"expected float32, bfloat16 or float16 for Triton, got {dtype}"):
            function(random_images(1, 2, 2), dtype, impl="triton")


def test_another_impl_is_named() -> None:
    with pytest.raises(ValueError, match="impl='cuda': expected 'auto', 'triton' or 'reference'"):
        rgb_to_lab(random_images(1, 2, 2), impl="cuda")  # type: ignore[arg-type]


@pytest.mark.skipif(DEVICE == "cuda", reason="about CPU tensors without the interpreter")
def test_triton_refuses_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="impl='triton': expected a CUDA tensor, got one on cpu"):
        rgb_to_lab(random_images(1, 2, 2), impl="triton")


def test_mixed_types_and_shapes_are_named() -> None:
    lightness, ab = torch.zeros(1, 1, 4, 4, device=DEVICE), torch.zeros(1, 2, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"of one floating type on one device, got torch\.float32"):
        lab_to_rgb_u8(lightness, ab.bfloat16())
    with pytest.raises(ValueError, match=r"expected L \(N,1,H,W\)"):
        lab_to_rgb_u8(lightness[:, :, :3], ab)


def test_kernels_give_the_same_bits_every_time() -> None:
    rgb = random_images(2, 33, 20)
    for one, other in zip(rgb_to_lab(rgb, impl="triton"), rgb_to_lab(rgb, impl="triton"), strict=True):
        np.testing.assert_array_equal(one.cpu().numpy(), other.cpu().numpy())
