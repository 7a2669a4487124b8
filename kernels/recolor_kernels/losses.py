"""L1 losses of a colorizer: value and gradient in one pass over the tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import color_math, memory, reference
from recolor_kernels.color import is_exact
from recolor_kernels.gradients import check_no_gradient
from recolor_kernels.launch import (
    Impl,
    check_floating,
    check_one_device,
    check_rgb_u8,
    check_same_shape,
    check_triton_dtype,
    pixels_per_thread,
)
from recolor_kernels.loss_op import LossOp, Term, gradient_factors, launch_loss
from recolor_kernels.sums import BLOCK

# ---- kernels ----


@triton.jit
def l1_sum(
    prediction_ptr, target_ptr, gradient_ptr, factor, size, blocks, program, programs,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's part of sum |prediction - target|; writes factor x sign of each difference."""
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks, programs):
        first, left = memory.span(block, size, BLOCK)
        target = memory.load(target_ptr + first, left, BLOCK)
        partial += _l1(prediction_ptr + first, gradient_ptr + first, target, factor, left, GRADIENT, BLOCK)
    return tl.sum(partial)


@triton.jit
def _l1(prediction_ptr, gradient_ptr, target, factor, left, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    difference = memory.load(prediction_ptr, left, BLOCK) - target
    if GRADIENT:
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        memory.store(gradient_ptr, factor * sign, left, BLOCK)
    return tl.where(tl.arange(0, BLOCK) < left, tl.abs(difference), 0.0)


@triton.jit
def _l1_kernel(
    prediction_ptr, target_ptr, prediction_gradient_ptr, sums_ptr, prediction_factor,
    prediction_size, prediction_blocks, prediction_programs, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    partial = l1_sum(
        prediction_ptr, target_ptr, prediction_gradient_ptr, prediction_factor, prediction_size, prediction_blocks,
        program, prediction_programs, GRADIENT, BLOCK,
    )  # fmt: skip
    tl.store(sums_ptr + program, partial)


@triton.jit
def _l1_lab_kernel(
    prediction_ptr, rgb_ptr, gradient_ptr, sums_ptr, factor, pixels, blocks, all_blocks, programs,
    CHANNELS: tl.constexpr, EXACT: tl.constexpr, GROUP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As _l1_kernel, with targets made from images: ab for two channels, L and ab for three."""
    program = tl.program_id(0)
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, all_blocks, programs):
        image, first, left = memory.locate(block, pixels, blocks, BLOCK)
        red, green, blue = memory.load_rgb(rgb_ptr + (image * pixels + first) * 3, left, GROUP, BLOCK)
        lightness, a, b = color_math.rgb_to_lab(red, green, blue, EXACT)
        plane = image * pixels * CHANNELS + first
        if CHANNELS == 3:
            partial += _l1(prediction_ptr + plane, gradient_ptr + plane, lightness, factor, left, GRADIENT, BLOCK)
            plane += pixels
        partial += _l1(prediction_ptr + plane, gradient_ptr + plane, a, factor, left, GRADIENT, BLOCK)
        plane += pixels
        partial += _l1(prediction_ptr + plane, gradient_ptr + plane, b, factor, left, GRADIENT, BLOCK)
    tl.store(sums_ptr + program, tl.sum(partial))


# ---- launchers ----


def match_layouts(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dense layout, so that their values pair up in the order of memory; copied only if they differ."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if all(tensor.is_contiguous(memory_format=memory_format) for tensor in (prediction, target)):
            return prediction, target
    return prediction.contiguous(), target.contiguous()


def _launch_l1(prediction: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    check_triton_dtype(prediction.dtype, target.dtype)
    prediction, target = match_layouts(prediction, target)
    term = Term.of(prediction, 1.0, with_gradient)
    arguments = {**term.arguments("prediction"), "target_ptr": target, "GRADIENT": with_gradient}
    return launch_loss(_l1_kernel, term, **arguments)[0], term.gradient


def _launch_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    check_triton_dtype(prediction.dtype)
    prediction, rgb = prediction.contiguous(), rgb_u8_NHWC.contiguous()
    n, channels, height, width = prediction.shape
    blocks = triton.cdiv(height * width, BLOCK)  # of one image: a block's pixels count for all channels
    term = Term.of(prediction, 1.0, with_gradient, n * blocks)
    loss, *_ = launch_loss(
        _l1_lab_kernel, term, prediction_ptr=prediction, rgb_ptr=rgb, gradient_ptr=term.gradient, factor=term.factor,
        pixels=height * width, blocks=blocks, all_blocks=term.split.blocks, programs=term.split.programs,
        CHANNELS=channels, EXACT=is_exact(prediction.dtype), GROUP=pixels_per_thread(rgb, planes=prediction.dtype),
        GRADIENT=with_gradient,
    )  # fmt: skip
    return loss, term.gradient


# ---- registration ----


def reference_l1(prediction: Tensor, target: Tensor, with_gradient: bool, weight: float = 1.0) -> tuple[Tensor, ...]:
    """(mean absolute difference, gradient of weight x mean in the prediction), as the op returns them."""
    prediction, target = match_layouts(prediction, target)
    difference = prediction.to(reference.working(prediction.dtype)) - target
    loss = difference.abs().mean()
    if not with_gradient:
        return loss, prediction.new_empty(0)
    return loss, difference.sign_().mul_(gradient_factors(prediction, weight)[0]).to(prediction.dtype)


def _reference_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    return reference_l1(prediction.contiguous(), reference.lab_target(prediction, rgb_u8_NHWC), with_gradient)


def _fake_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, ...]:
    """Without Lab values, whose table of levels is kept across calls and must not be a traced tensor."""
    return reference_l1(prediction.contiguous(), prediction.contiguous(), with_gradient)


_l1_loss = LossOp(
    "l1_loss(Tensor prediction, Tensor target, bool with_gradient) -> (Tensor, Tensor)",
    triton=_launch_l1,
    cpu=reference_l1,
    reference=reference.l1_loss,
    weights=lambda *arguments: {0: 1.0},
)
_l1_lab_loss = LossOp(
    "l1_lab_loss(Tensor prediction, Tensor rgb_u8_NHWC, bool with_gradient) -> (Tensor, Tensor)",
    triton=_launch_l1_lab,
    cpu=_reference_l1_lab,
    reference=reference.l1_lab_loss,
    weights=lambda *arguments: {0: 1.0},
    fake=_fake_l1_lab,
)

# ---- public functions ----


def l1_loss(prediction: Tensor, target: Tensor, impl: Impl = "auto") -> Tensor:
    """Mean absolute difference: 0-dimensional, float32, or float64 if an input is float64.

    prediction, target: equal shapes, any strides and floating types, for Triton float32, bfloat16 or float16.
    Differentiable once in the prediction (the sign of the difference, 0 where equal), on a GPU by one backward pass;
    impl="reference" any number of times, in both. Raises ValueError for other shapes, types or impl, RuntimeError for
    a second derivative. Not a number for empty tensors.
    """
    check_same_shape(prediction, target)
    if impl != "reference":
        check_no_gradient(target)
    return _l1_loss(impl, prediction, target)[0]


def l1_lab_loss(prediction: Tensor, rgb_u8_NHWC: Tensor, impl: Impl = "auto") -> Tensor:
    """Mean absolute difference from the Lab values of images, which are computed on the fly and never stored.

    prediction: ab (N,2,H,W), or L and ab (N,3,H,W), in the ranges of rgb_to_lab; floating, any strides. rgb_u8_NHWC:
    uint8 (N,H,W,3). Result, derivatives and errors as those of l1_loss.
    """
    check_rgb_u8(rgb_u8_NHWC)
    check_floating(prediction)
    check_one_device(prediction, rgb_u8_NHWC)
    n, height, width, _ = rgb_u8_NHWC.shape
    if prediction.shape not in ((n, 2, height, width), (n, 3, height, width)):
        raise ValueError(
            f"expected ab {(n, 2, height, width)} or Lab {(n, 3, height, width)}, got {tuple(prediction.shape)}"
        )
    return _l1_lab_loss(impl, prediction, rgb_u8_NHWC)[0]
