"""Checks an op before it is timed: ours against the float64 reference on the same inputs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case, Tensors

# By type of the result. Values: the maximum difference over the largest value. Gradients: the norm of the difference
# over that of the gradient, since rounding may flip the sign, or cross the gamut's edge, in single elements.
TOLERANCES = {
    torch.uint8: 1.01 / 255,  # one level
    torch.bfloat16: 4e-3,  # half a unit in the last place is 2e-3
    torch.float32: 1e-4,
    torch.float64: 1e-4,  # metrics, whose pixels are computed in float32
}
# Gradients that are signs of differences. The polynomials for 16 bits change the differences by 1e-5, so a few signs in
# a million flip.
SIGNS = 1.5e-2


def what_is_wrong(case: Case, inputs: Tensors) -> str | None:
    """Why ours fails its check on these inputs, or None."""
    with _uninitialized_memory_holds_nan():
        ours = case.side(case.calls("auto"))(*inputs)
    truth = case.side(case.calls("reference", torch.float64))(*map(_widened, inputs))
    for kind, measure, results, truths in zip(("value", "gradient"), (worst, norm), ours, truth, strict=True):
        for number, (one, other) in enumerate(zip(results, truths, strict=True)):
            if one.shape != other.shape:
                return f"{kind} {number}: shape {tuple(one.shape)} instead of {tuple(other.shape)}"
            error = measure(one, other)
            allowed = SIGNS if kind == "gradient" and case.name.startswith("l1_lab") else TOLERANCES[one.dtype]
            if not error <= allowed:  # NaN is not
                return f"{kind} {number}: {measure.__name__} error {error:.2g}, tolerance {allowed:.2g}"
    return None


def worst(one: Tensor, other: Tensor) -> float:
    """The maximum difference over the second's largest value. Equal infinities do not differ."""
    difference = (one.double() - other.double()).where(one != other, 0).abs()
    return float(difference.max() / other.double().abs().max().clamp_min(1e-30))


def norm(one: Tensor, other: Tensor) -> float:
    """The norm of the difference over that of the second."""
    other = other.double()
    return float((one.double() - other).norm() / other.norm().clamp_min(1e-30))


def _widened(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


@contextmanager
def _uninitialized_memory_holds_nan() -> Iterator[None]:
    """So that a value that a kernel does not write fails the check."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
