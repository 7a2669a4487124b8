"""Inputs for tests of the kernels, and how close two results must be."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from recolor_kernels import AB_SCALE, Impl
from tests.support import tolerances

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMPLS: tuple[Impl, ...] = ("auto", "triton", "reference")
LAYOUTS = ("contiguous", "channels last", "transposed", "every other column")

# torch.library.opcheck reads .grad of non-leaf tensors, and torch's own suppression of the warning does not work if
# warnings are errors.
OPCHECK_READS_GRAD = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

Array = np.ndarray[Any, np.dtype[Any]]


def random_images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator).to(DEVICE)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = DEVICE) -> Tensor:
    """Standard normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values with other strides; contiguous if the shape does not allow the layout."""
    if layout == "channels last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and values.ndim >= 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "every other column" and values.ndim >= 1:
        wide = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1])
        wide[..., 1::2] = values
        return wide[..., 1::2]
    return values.contiguous()


layouts = st.sampled_from(LAYOUTS)
image_layouts = st.sampled_from(["contiguous", "every other row", "channels first", "shifted by a byte"])


def image_laid_out(rgb: Tensor, layout: str) -> Tensor:
    n, height, width, _ = rgb.shape
    if layout == "every other row":
        return rgb.repeat_interleave(2, dim=1)[:, ::2]
    if layout == "channels first":
        return rgb.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if layout == "shifted by a byte":
        return torch.cat((rgb.new_zeros(1), rgb.flatten()))[1:].view(n, height, width, 3)
    return rgb.contiguous()


def lab_units(lightness: Tensor, ab: Tensor) -> Tensor:
    """(N,3,H,W) in Lab units, float64."""
    return torch.cat(((lightness.double() + 1) * 50, ab.double() * AB_SCALE), dim=1)


def value_and_gradients(
    loss: Callable[..., Tensor], leaves: Sequence[Tensor], impl: str, scale: float = 1
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of scale * loss; leaves are left as they are, strides too."""
    tracked = [leaf.detach().requires_grad_() for leaf in leaves]
    value = loss(*tracked, impl=impl)
    gradients = torch.autograd.grad(value * scale, tracked)
    return value.detach(), list(gradients)


def assert_value_is_close(found: Tensor, expected: Tensor) -> None:
    rtol = tolerances.FLOAT64_RELATIVE if found.dtype == torch.float64 else tolerances.LOSS_RELATIVE
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=0, equal_nan=True)


def assert_gradients_are_close(
    found: Sequence[Tensor], expected: Sequence[Tensor], of_largest: float = tolerances.GRADIENT_OF_LARGEST
) -> None:
    """Within a few units in the last place of the gradient's type, plus the error of float32 arithmetic."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if one.numel():
            largest = float(other.abs().max())
            dtype = one.dtype
            if dtype == torch.float64:
                rtol, atol = tolerances.FLOAT64_RELATIVE, tolerances.FLOAT64_RELATIVE * largest
            elif dtype == torch.float32:
                rtol, atol = tolerances.GRADIENT_RELATIVE, of_largest * largest
            else:
                smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
                rtol = tolerances.GRADIENT_UNITS * torch.finfo(dtype).eps
                atol = of_largest * largest + smallest
            torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


def _differentiate_gradients(value: Tensor, leaves: Sequence[Tensor]) -> None:
    first = torch.autograd.grad(value, leaves, create_graph=True)
    torch.autograd.grad(sum(gradient.sum() for gradient in first), leaves)  # type: ignore[arg-type]


def _differentiate_gradients_where_used(value: Tensor, leaves: Sequence[Tensor]) -> None:
    first = torch.autograd.grad(value, leaves, create_graph=True)
    torch.autograd.grad(first[0].sum(), leaves, allow_unused=True, materialize_grads=True)


def _penalize_gradients_backward(value: Tensor, leaves: Sequence[Tensor]) -> None:
    first = torch.autograd.grad(value, leaves, create_graph=True)
    (value + first[0].square().sum()).backward()  # type: ignore[no-untyped-call]


def _penalize_gradients(value: Tensor, leaves: Sequence[Tensor]) -> None:
    first = torch.autograd.grad(value, leaves, create_graph=True)
    torch.autograd.grad(value + first[0].square().sum(), leaves)


def _differentiate_by_upstream(value: Tensor, leaves: Sequence[Tensor]) -> None:
    weight = torch.ones((), device=value.device, requires_grad=True)
    first = torch.autograd.grad(weight * value, leaves, create_graph=True)
    torch.autograd.grad(first[0].square().sum(), weight)


# The ways in which a training step requests a second derivative; each must raise, never return zeros.
SECOND_DERIVATIVES: dict[str, Callable[[Tensor, Sequence[Tensor]], None]] = {
    "gradient of gradients": _differentiate_gradients,
    "gradient of gradients, zeros where unused": _differentiate_gradients_where_used,
    "penalty, backward": _penalize_gradients_backward,
    "penalty, gradient": _penalize_gradients,
    "by the upstream gradient": _differentiate_by_upstream,
}
