"""The reference against scikit-image and torch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.color import rgb2lab

from recolor_kernels import AB_SCALE, l1_loss, lab_to_rgb_u8, patch_loss, rgb_float_to_u8, rgb_to_gray, rgb_to_lab
from tests.support import tolerances

IMAGES = arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), st.just(3)))


@pytest.fixture(scope="module")
def lattice() -> torch.Tensor:
    """Every fifth level of each channel, and all grays: (1, 52 * 52 + 5, 52, 3)."""
    levels = torch.arange(0, 256, 5, dtype=torch.uint8)
    colors = torch.cartesian_prod(levels, levels, levels)
    grays = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(-1, 3)[: 52 * 4]
    return torch.cat((colors, grays)).view(1, -1, 52, 3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, tolerances.LAB_FLOAT32), (torch.float64, tolerances.LAB_FLOAT64)]
)
def test_lab_equals_scikit_image(lattice: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    lightness, ab = rgb_to_lab(lattice, dtype)
    expected = rgb2lab(lattice.numpy().astype(np.float64) / 255)
    found = torch.cat(((lightness + 1) * 50, ab * AB_SCALE), dim=1).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() <= tolerance


def test_lab_and_back_returns_every_color_of_the_lattice(lattice: torch.Tensor) -> None:
    assert torch.equal(lab_to_rgb_u8(*rgb_to_lab(lattice)), lattice)


@given(IMAGES)
@settings(max_examples=50)
def test_lab_and_back_returns_any_image_of_any_size(image: "np.typing.NDArray[np.uint8]") -> None:
    rgb = torch.from_numpy(image)
    assert torch.equal(lab_to_rgb_u8(*rgb_to_lab(rgb)), rgb)


def test_results_are_in_the_stated_ranges(lattice: torch.Tensor) -> None:
    lightness, ab = rgb_to_lab(lattice)
    gray, rgb = rgb_to_gray(lattice)
    for values in (lightness, ab, gray, rgb):
        assert -1 - tolerances.RANGE <= values.min() <= values.max() <= 1 + tolerances.RANGE


def test_colors_out_of_gamut_are_clamped() -> None:
    lightness, ab = torch.full((1, 1, 1, 1), 0.9), torch.tensor([-1.0, -1.0]).view(1, 2, 1, 1)
    image = lab_to_rgb_u8(lightness, ab)
    assert image.min() == 0
    assert image.max() == 255


def test_gray_is_pillows_luma() -> None:
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    gray, _ = rgb_to_gray(torch.from_numpy(image)[None])
    levels = (gray[0, 0].numpy() + 1) * 127.5
    assert np.abs(levels - np.asarray(Image.fromarray(image).convert("L"))).max() <= tolerances.GRAY_LEVELS


def test_rgb_target_and_back_returns_the_image(lattice: torch.Tensor) -> None:
    assert torch.equal(rgb_float_to_u8(rgb_to_gray(lattice)[1]), lattice)


@pytest.mark.parametrize("criterion", ["bce", "l1", "mse"])
@pytest.mark.parametrize("real", [True, False])
def test_patch_loss_follows_its_definition(criterion: Any, real: bool) -> None:
    logits = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, probability = float(real), 1 / (1 + torch.exp(-logits))
    expected = {
        "bce": -(label * probability.log() + (1 - label) * (1 - probability).log()).mean(),
        "l1": (probability - label).abs().mean(),
        "mse": (logits - label).square().mean(),
    }[criterion]
    torch.testing.assert_close(patch_loss(logits, real, criterion), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rgb_to_lab(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
            "uint8 (N,H,W,3), got torch.uint8 (1, 3, 4, 4)",
        ),
        (lambda: rgb_to_lab(torch.zeros(1, 4, 4, 3)), "got torch.float32"),
        (lambda: lab_to_rgb_u8(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 5)), "got (1, 1, 4, 4) and (1, 2, 4, 5)"),
        (lambda: rgb_float_to_u8(torch.zeros(1, 2, 4, 4)), "got (1, 2, 4, 4)"),
        (lambda: l1_loss(torch.zeros(2), torch.zeros(3)), "got (2,) and (3,)"),
        (lambda: patch_loss(torch.zeros(2), True, "hinge"), "criterion='hinge'"),  # type: ignore[arg-type]
    ],
)
def test_errors_say_what_was_expected_and_what_arrived(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        call()
    assert message in str(error.value)


def test_bits_depend_on_neither_batch_nor_strides(lattice: torch.Tensor) -> None:
    batch = lattice[:, :2704].reshape(13, 208, 52, 3)
    channels_first = batch.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    whole = rgb_to_lab(batch)
    for found, expected in zip(rgb_to_lab(channels_first), whole, strict=True):
        assert torch.equal(found, expected)
    for number in range(len(batch)):
        for found, expected in zip(rgb_to_lab(batch[number : number + 1]), whole, strict=True):
            assert torch.equal(found, expected[number : number + 1])
    lightness, ab = whole
    assert torch.equal(lab_to_rgb_u8(lightness, ab)[3:4], lab_to_rgb_u8(lightness[3:4], ab[3:4]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPU tensors")
def test_auto_is_the_reference_itself_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of this folder's fixture
    logits = torch.zeros(3, requires_grad=True)
    assert patch_loss(logits, True).grad_fn.name() == patch_loss(logits, True, impl="reference").grad_fn.name()  # type: ignore[union-attr]
    assert "recolor" in torch.ops.recolor_kernels.patch_loss(logits, True, "bce", True)[0].grad_fn.name()
