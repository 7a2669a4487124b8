"""CIEDE2000 of predicted ab as a loss: value and gradient in one pass over the tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color_difference, memory, reference
from recolor_kernels.constants import AB_SCALE, ROOT_EPSILON
from recolor_kernels.gradients import check_no_gradient
from recolor_kernels.launch import Impl, check_same_shape, check_triton_dtype
from recolor_kernels.loss_op import LossOp, Term, gradient_factors, launch_loss
from recolor_kernels.losses import reference_l1
from recolor_kernels.sums import BLOCK

# The loss is the sum over pixels, divided by the number of values, times this: a pixel has two values.
WEIGHT = 2 / AB_SCALE

# Pixels that a CPU core works on at a time, so that what it computes for them stays in its caches.
PIXELS_A_CORE = 65536

# ---- kernel ----


@triton.jit
def _ciede2000_kernel(
    prediction_ptr, target_ptr, gradient_ptr, sums_ptr, factor, pixels, blocks, all_blocks, programs,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's part of the sum of all differences; writes factor x the derivatives of each."""
    program = tl.program_id(0)
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, all_blocks, programs):
        image, first, left = memory.locate(block, pixels, blocks, BLOCK)
        a = image * pixels * 2 + first
        b = a + pixels
        a1, b1 = memory.load(prediction_ptr + a, left, BLOCK), memory.load(prediction_ptr + b, left, BLOCK)
        a2, b2 = memory.load(target_ptr + a, left, BLOCK), memory.load(target_ptr + b, left, BLOCK)
        difference, d_a, d_b = color_difference.chroma_difference(a1, b1, a2, b2)
        if GRADIENT:
            memory.store(gradient_ptr + a, factor * d_a, left, BLOCK)
            memory.store(gradient_ptr + b, factor * d_b, left, BLOCK)
        partial += tl.where(tl.arange(0, BLOCK) < left, difference, 0.0)
    tl.store(sums_ptr + program, tl.sum(partial))


# ---- launcher ----


def _launch_ciede2000(prediction_N2HW: Tensor, target_N2HW: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    check_triton_dtype(prediction_N2HW.dtype, target_N2HW.dtype)
    prediction, target = prediction_N2HW.contiguous(), target_N2HW.contiguous()
    n, _, height, width = prediction.shape
    blocks = triton.cdiv(height * width, BLOCK)  # of one image
    term = Term.of(prediction, WEIGHT, with_gradient, n * blocks)
    loss, *_ = launch_loss(
        _ciede2000_kernel, term, prediction_ptr=prediction, target_ptr=target, gradient_ptr=term.gradient,
        factor=term.factor, pixels=height * width, blocks=blocks, all_blocks=term.split.blocks,
        programs=term.split.programs, GRADIENT=with_gradient,
    )  # fmt: skip
    return loss, term.gradient


# ---- on a CPU ----


def _compute_ciede2000(prediction_N2HW: Tensor, target_N2HW: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    """What the kernel computes, a few images at a time."""
    prediction, target = prediction_N2HW.contiguous(), target_N2HW.contiguous()
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    factor, _ = gradient_factors(prediction, WEIGHT)
    images = max(1, PIXELS_A_CORE * torch.get_num_threads() // max(1, prediction.shape[2] * prediction.shape[3]))
    differences = []
    for first in range(0, max(1, len(prediction)), images):
        part = slice(first, first + images)
        difference, slope = _difference_and_slope(prediction[part], target[part])
        differences.append(difference)
        if with_gradient:
            gradient[part] = slope.mul_(factor)
    return torch.cat(differences).mean() / AB_SCALE, gradient


def _difference_and_slope(one_N2HW: Tensor, other_N2HW: Tensor) -> tuple[Tensor, Tensor]:
    """Differences (N,1,H,W), and their derivatives in the first color (N,2,H,W), as color_difference's kernels do."""
    dtype = reference.working(torch.promote_types(one_N2HW.dtype, other_N2HW.dtype))
    one, other = one_N2HW.to(dtype), other_N2HW.to(dtype)
    one, other, step = AB_SCALE * one, AB_SCALE * other, AB_SCALE * (other - one)
    stretch = reference.chroma_stretch(torch.hypot(*_channels(one)), torch.hypot(*_channels(other)))
    for ab in (one, other, step):
        _channels(ab)[0].mul_(stretch)
    c1, c2 = ((_dot(ab, ab) + ROOT_EPSILON).sqrt() for ab in (one, other))
    chroma, d_chroma = (c1 + c2) / 2, _dot(step, one + other) / (c1 + c2)
    direction = one / c1
    x, y = _channels(direction + other / c2)
    hue = torch.rad2deg(torch.atan2(y, x)) % 360
    t = reference.hue_weight(hue)
    (a, b), (step_a, step_b) = _channels(one), _channels(step)
    rotation = reference.hue_rotation(hue, chroma) * torch.sign(a * step_b - b * step_a)
    across = step - direction * d_chroma
    chord = (_dot(across, across) + ROOT_EPSILON * (d_chroma / c1).square()) * c1 / c2
    scale_c, scale_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    by_c, by_h2 = d_chroma / scale_c, (chord + 2 * ROOT_EPSILON) / scale_h.square()
    by_h = (by_h2 + ROOT_EPSILON).sqrt()
    rotated = rotation * by_h
    difference = (by_c * (by_c + rotated) + by_h.square()).sqrt()
    d_by_c = (2 * by_c + rotated) / (2 * difference)
    d_by_h2 = (1 + rotation * by_c / (2 * by_h)) / (2 * difference * scale_h)
    along = d_by_c * (1 + 0.0225 * by_c) / scale_c + 0.015 * t * by_h2 * d_by_h2
    slope = (2 * d_by_h2 / scale_h * across).addcmul_(along, direction).mul_(-AB_SCALE)
    _channels(slope)[0].mul_(stretch)
    return difference, slope


def _channels(ab_N2HW: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a* and b*, each (N,1,H,W)."""
    return ab_N2HW[:, :1], ab_N2HW[:, 1:]


def _dot(one_N2HW: Tensor, other_N2HW: Tensor) -> Tensor:
    (a1, b1), (a2, b2) = _channels(one_N2HW), _channels(other_N2HW)
    return a1 * a2 + b1 * b2


# ---- registration ----


def _fake_ciede2000(prediction_N2HW: Tensor, target_N2HW: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    return reference_l1(prediction_N2HW.contiguous(), target_N2HW.contiguous(), with_gradient)


_ciede2000_loss = LossOp(
    "ciede2000_loss(Tensor prediction_N2HW, Tensor target_N2HW, bool with_gradient) -> (Tensor, Tensor)",
    triton=_launch_ciede2000,
    cpu=_compute_ciede2000,
    reference=reference.ciede2000_loss,
    weights=lambda *arguments: {0: WEIGHT},
    fake=_fake_ciede2000,
    fast_on_cpu=True,
)

# ---- public function ----


def ciede2000_loss(prediction_N2HW: Tensor, target_N2HW: Tensor, impl: Impl = "auto") -> Tensor:
    """Mean CIEDE2000 of predicted and target colors at equal L*, over AB_SCALE: 0-dimensional, of the type of l1_loss.

    prediction, target: ab (N,2,H,W) in the range of rgb_to_lab; any strides and floating types, for Triton float32,
    bfloat16 or float16. Differentiable everywhere, in the prediction, once; impl="reference" any number of times, in
    both. What is constant in the backward pass: reference.chroma_difference. Raises ValueError for other shapes, types
    or impl, RuntimeError for a second derivative. Not a number for no pixels. On a CPU impl="auto" is the op too.
    """
    check_same_shape(prediction_N2HW, target_N2HW)
    if prediction_N2HW.ndim != 4 or prediction_N2HW.shape[1] != 2:
        raise ValueError(f"expected ab (N,2,H,W), got {tuple(prediction_N2HW.shape)}")
    if impl != "reference":
        check_no_gradient(target_N2HW)
    return _ciede2000_loss(impl, prediction_N2HW, target_N2HW)[0]
