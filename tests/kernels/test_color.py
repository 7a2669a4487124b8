"""The conversion kernels, on a GPU or in Triton's interpreter, against the reference."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recolor_kernels import AB_SCALE, color, lab_to_rgb_u8, reference, rgb_to_gray, rgb_to_lab
from recolor_kernels.launch import can_move_words
from tests import tolerances

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Memory that is handed out uninitialized holds NaN, so that a value left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


def pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator).to(DEVICE)


def lab_units(lightness: Tensor, ab: Tensor) -> Tensor:
    """(N,3,H,W) in Lab units, float64."""
    return torch.cat(((lightness.double() + 1) * 50, ab.double() * AB_SCALE), dim=1)


@pytest.fixture(scope="module", params=range(16))
def sixteenth_of_all_colors(request: pytest.FixtureRequest) -> Tensor:
    """The 1,048,576 colors with sixteen levels of red: one picture (1,1024,1024,3)."""
    red = torch.arange(16 * request.param, 16 * request.param + 16, dtype=torch.uint8)
    levels = torch.arange(256, dtype=torch.uint8)
    return torch.cartesian_prod(red, levels, levels).view(1, 1024, 1024, 3).to(DEVICE)


def test_every_color_is_exact_and_comes_back(sixteenth_of_all_colors: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = sixteenth_of_all_colors
    if DEVICE == "cpu":
        monkeypatch.setattr(color, "PIXELS_PER_PROGRAM", 2**18)  # the interpreter's time goes by programs
    truth = lab_units(*reference.rgb_to_lab(rgb, torch.float64))
    lightness, ab = rgb_to_lab(rgb, impl="triton")
    assert (lab_units(lightness, ab) - truth).abs().max() <= tolerances.LAB_KERNEL
    assert torch.equal(lab_to_rgb_u8(lightness, ab, impl="triton"), rgb)
    # Triton's interpreter cuts to bfloat16 where a GPU rounds: there, round what the kernel made in float32.
    cut = DEVICE == "cpu"
    written = (lightness.bfloat16(), ab.bfloat16()) if cut else rgb_to_lab(rgb, torch.bfloat16, impl="triton")
    rounding = (lab_units(*written) - truth).abs()
    assert rounding.max() <= tolerances.LAB_BFLOAT16_WORST
    assert rounding.mean() <= tolerances.LAB_BFLOAT16_MEAN


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 1, 1), False), ((2, 3, 5), False), ((3, 2, 2), True), ((1, 64, 33), True), ((2, 37, 41), False)],
)
def test_kernels_agree_with_the_reference_by_words_and_by_bytes(
    shape: tuple[int, int, int], words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []

    def noted(rgb: Tensor) -> bool:
        taken.append(can_move_words(rgb))
        return taken[-1]

    monkeypatch.setattr(color, "can_move_words", noted)
    rgb = pictures(*shape)
    for kernel, plain in ((rgb_to_lab, reference.rgb_to_lab), (rgb_to_gray, reference.rgb_to_gray)):
        for found, expected in zip(kernel(rgb, impl="triton"), plain(rgb), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerances.KERNEL_FLOAT32)
    assert torch.equal(lab_to_rgb_u8(*reference.rgb_to_lab(rgb), impl="triton"), rgb)
    assert taken == [words] * 3


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)),
    dtype=st.sampled_from(DTYPES),
    strides=st.sampled_from(["contiguous", "every other row", "channels first", "shifted by a byte"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_strides_and_type_agree_with_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, strides: str
) -> None:
    n, height, width = shape
    rgb = {
        "contiguous": lambda: pictures(n, height, width),
        "every other row": lambda: pictures(n, 2 * height, width)[:, ::2],
        "channels first": lambda: pictures(n, height, width).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "shifted by a byte": lambda: pictures(1, 1, n * height * width + 1).flatten()[1:-2].view(n, height, width, 3),
    }[strides]()
    for kernel, plain in ((rgb_to_lab, reference.rgb_to_lab), (rgb_to_gray, reference.rgb_to_gray)):
        for found, expected in zip(kernel(rgb, dtype, impl="triton"), plain(rgb, dtype), strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=tolerances.KERNEL_FLOAT32)
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


CALLS: list[tuple[Callable[..., Any], str, Callable[[], tuple[Any, ...]]]] = [
    (rgb_to_lab, "rgb_to_lab", lambda: (pictures(2, 4, 6), torch.float32)),
    (rgb_to_gray, "rgb_to_gray", lambda: (pictures(2, 4, 6), torch.float32)),
    (lab_to_rgb_u8, "lab_to_rgb_u8", lambda: reference.rgb_to_lab(pictures(2, 4, 6))),
]


@pytest.mark.parametrize(("function", "name", "arguments"), CALLS, ids=[name for _, name, _ in CALLS])
def test_ops_are_registered_rightly(
    function: Callable[..., Any], name: str, arguments: Callable[[], tuple[Any, ...]]
) -> None:
    torch.library.opcheck(getattr(torch.ops.recolor_kernels, name).default, arguments())


@pytest.mark.parametrize(("function", "name", "arguments"), CALLS, ids=[name for _, name, _ in CALLS])
def test_ops_compile_without_a_graph_break(
    function: Callable[..., Any], name: str, arguments: Callable[[], tuple[Any, ...]]
) -> None:
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments())
    expected = function(*arguments(), impl="reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerances.KERNEL_FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_types_that_kernels_do_not_write_are_named(dtype: torch.dtype) -> None:
    for function in (rgb_to_lab, rgb_to_gray):
        with pytest.raises(ValueError, match=f"expected float32, bfloat16 or float16 for Triton, got {dtype}"):
            function(pictures(1, 2, 2), dtype, impl="triton")


def test_another_impl_is_named() -> None:
    with pytest.raises(ValueError, match="impl='cuda': expected 'auto', 'triton' or 'reference'"):
        rgb_to_lab(pictures(1, 2, 2), impl="cuda")  # type: ignore[arg-type]


@pytest.mark.skipif(DEVICE == "cuda", reason="about CPU tensors without the interpreter")
def test_triton_refuses_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="impl='triton': expected a CUDA tensor, got one on cpu"):
        rgb_to_lab(pictures(1, 2, 2), impl="triton")


def test_mixed_types_and_shapes_are_named() -> None:
    lightness, ab = torch.zeros(1, 1, 4, 4, device=DEVICE), torch.zeros(1, 2, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"of one floating type on one device, got torch\.float32"):
        lab_to_rgb_u8(lightness, ab.bfloat16())
    with pytest.raises(ValueError, match=r"expected L \(N,1,H,W\)"):
        lab_to_rgb_u8(lightness[:, :, :3], ab)


def test_kernels_give_the_same_bits_every_time() -> None:
    rgb = pictures(2, 33, 20)
    for one, other in zip(rgb_to_lab(rgb, impl="triton"), rgb_to_lab(rgb, impl="triton"), strict=True):
        np.testing.assert_array_equal(one.cpu().numpy(), other.cpu().numpy())
