"""L1 losses of a colorizer: value and gradient in one pass over the tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, parts, reference
from recolor_kernels.color import is_exact
from recolor_kernels.gradients import empty_gradient, made_forward, steps
from recolor_kernels.launch import (
    Impl,
    check_floating,
    check_one_device,
    check_rgb_u8,
    check_triton_dtype,
    choose,
    pixels_together,
    register,
)
from recolor_kernels.sums import BLOCK, Share, empty_sums, total

# ---- kernels ----


@triton.jit
def l1_sum(
    prediction_ptr, target_ptr, gradient_ptr, step, size, blocks, program, programs,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's part of sum |prediction - target|; writes step x sign of each difference."""
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks, programs):
        first, left = parts.span(block, size, BLOCK)
        target = parts.load(target_ptr + first, left, BLOCK)
        partial += _l1(prediction_ptr + first, gradient_ptr + first, target, step, left, GRADIENT, BLOCK)
    return tl.sum(partial)


@triton.jit
def _l1(prediction_ptr, gradient_ptr, target, step, left, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    difference = parts.load(prediction_ptr, left, BLOCK) - target
    if GRADIENT:
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        parts.store(gradient_ptr, step * sign, left, BLOCK)
    return tl.where(tl.arange(0, BLOCK) < left, tl.abs(difference), 0.0)


@triton.jit
def _l1_kernel(
    prediction_ptr, target_ptr, gradient_ptr, sums_ptr, step, size, blocks, programs,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    partial = l1_sum(
        prediction_ptr, target_ptr, gradient_ptr, step, size, blocks, program, programs, GRADIENT, BLOCK
    )  # fmt: skip
    tl.store(sums_ptr + program, partial)


@triton.jit
def _l1_lab_kernel(
    prediction_ptr, rgb_ptr, gradient_ptr, sums_ptr, step, pixels, blocks, all_blocks, programs,
    CHANNELS: tl.constexpr, EXACT: tl.constexpr, GROUP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As _l1_kernel, with targets made from pictures: ab for two channels, L and ab for three."""
    program = tl.program_id(0)
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, all_blocks, programs):
        image, first, left = parts.locate(block, pixels, blocks, BLOCK)
        red, green, blue = parts.load_rgb(rgb_ptr + (image * pixels + first) * 3, left, GROUP, BLOCK)
        lightness, a, b = parts.rgb_to_lab(red, green, blue, EXACT)
        plane = image * pixels * CHANNELS + first
        if CHANNELS == 3:
            partial += _l1(prediction_ptr + plane, gradient_ptr + plane, lightness, step, left, GRADIENT, BLOCK)
            plane += pixels
        partial += _l1(prediction_ptr + plane, gradient_ptr + plane, a, step, left, GRADIENT, BLOCK)
        plane += pixels
        partial += _l1(prediction_ptr + plane, gradient_ptr + plane, b, step, left, GRADIENT, BLOCK)
    tl.store(sums_ptr + program, tl.sum(partial))


# ---- launchers ----


def alike(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same dense layout, so that their values pair up in the order of memory."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if all(tensor.is_contiguous(memory_format=memory_format) for tensor in (prediction, target)):
            return prediction, target
    return prediction.contiguous(), target.contiguous()


def _launch_l1(prediction: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    check_triton_dtype(prediction.dtype, target.dtype)
    prediction, target = alike(prediction, target)
    gradient, share = empty_gradient(prediction, with_gradient), Share.of_tensor(prediction)
    sums = empty_sums(prediction, share)
    if share.programs:
        launch.launch(
            _l1_kernel, share.programs, prediction_ptr=prediction, target_ptr=target, gradient_ptr=gradient,
            sums_ptr=sums, step=steps(prediction, 1.0)[0], size=prediction.numel(), blocks=share.blocks,
            programs=share.programs, GRADIENT=with_gradient, BLOCK=BLOCK,
        )  # fmt: skip
    return total(sums, share)[0], gradient


def _launch_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    check_triton_dtype(prediction.dtype)
    prediction, rgb = prediction.contiguous(), rgb_u8_NHWC.contiguous()
    n, channels, height, width = prediction.shape
    blocks = triton.cdiv(height * width, BLOCK)
    gradient, share = empty_gradient(prediction, with_gradient), Share.of(prediction.numel(), n * blocks)
    sums = empty_sums(prediction, share)
    if share.programs:
        launch.launch(
            _l1_lab_kernel, share.programs, prediction_ptr=prediction, rgb_ptr=rgb, gradient_ptr=gradient,
            sums_ptr=sums, step=steps(prediction, 1.0)[0], pixels=height * width, blocks=blocks,
            all_blocks=share.blocks, programs=share.programs, CHANNELS=channels, EXACT=is_exact(prediction.dtype),
            GROUP=pixels_together(rgb, planes=prediction.dtype), GRADIENT=with_gradient, BLOCK=BLOCK,
        )  # fmt: skip
    return total(sums, share)[0], gradient


# ---- registration ----


def reference_l1(prediction: Tensor, target: Tensor, with_gradient: bool, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """The mean, and the gradient of weight x the mean."""
    prediction, target = alike(prediction, target)
    difference = prediction.to(reference.working(prediction.dtype)) - target
    loss = difference.abs().mean()
    if not with_gradient:
        return loss, prediction.new_empty(0)
    return loss, difference.sign_().mul_(steps(prediction, weight)[0]).to(prediction.dtype)


def _reference_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return reference_l1(prediction.contiguous(), reference.lab_target(prediction, rgb_u8_NHWC), with_gradient)


def empty_loss(tensor: Tensor) -> Tensor:
    """Room for a mean over a tensor: float32, or float64."""
    return tensor.new_empty((), dtype=reference.working(tensor.dtype))


def _empty_l1(prediction: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    gradient = empty_gradient(alike(prediction, target)[0], with_gradient)
    return empty_loss(prediction) + empty_loss(target), gradient


def _empty_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return empty_loss(prediction), empty_gradient(prediction.contiguous(), with_gradient)


_l1_loss = register(
    "l1_loss(Tensor prediction, Tensor target, bool with_gradient) -> (Tensor, Tensor)",
    cpu=reference_l1,
    cuda=_launch_l1,
    fake=_empty_l1,
)
_l1_lab_loss = register(
    "l1_lab_loss(Tensor prediction, Tensor rgb_u8_NHWC, bool with_gradient) -> (Tensor, Tensor)",
    cpu=_reference_l1_lab,
    cuda=_launch_l1_lab,
    fake=_empty_l1_lab,
)
_triton_l1 = made_forward(_l1_loss, _launch_l1, lambda *inputs: {0: 1.0})
_triton_l1_lab = made_forward(_l1_lab_loss, _launch_l1_lab, lambda *inputs: {0: 1.0})

# ---- public functions ----


def l1_loss(prediction: Tensor, target: Tensor, impl: Impl = "auto") -> Tensor:
    """Mean absolute difference: 0-dimensional, float32, or float64 if that comes in.

    prediction, target: equal shapes, any strides and floating types, for Triton float32, bfloat16 or float16.
    Differentiable once in the prediction (the sign of the difference, 0 where equal), on a GPU by one backward pass;
    impl="reference" any number of times, in both. Raises ValueError for other shapes, types or impl, RuntimeError for
    a second derivative.
    """
    check_alike(prediction, target)
    if impl != "reference":
        refuse_gradient(target)
    function = choose(impl, prediction, op=_l1_loss, triton=_triton_l1, reference=_differentiable_l1)
    loss: Tensor = function(prediction, target, wants_gradient(prediction))[0]
    return loss


def l1_lab_loss(prediction: Tensor, rgb_u8_NHWC: Tensor, impl: Impl = "auto") -> Tensor:
    """Mean absolute difference from the Lab values of pictures, which are made on the way and never stored.

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
    function = choose(impl, prediction, op=_l1_lab_loss, triton=_triton_l1_lab, reference=_differentiable_l1_lab)
    loss: Tensor = function(prediction, rgb_u8_NHWC, wants_gradient(prediction))[0]
    return loss


def _differentiable_l1(prediction: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor]:
    return (reference.l1_loss(prediction, target),)


def _differentiable_l1_lab(prediction: Tensor, rgb_u8_NHWC: Tensor, with_gradient: bool) -> tuple[Tensor]:
    return (reference.l1_lab_loss(prediction, rgb_u8_NHWC),)


def check_alike(prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are floating, of equal shapes, on one device."""
    check_floating(prediction, target)
    if prediction.shape != target.shape:
        raise ValueError(f"expected equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")


def refuse_gradient(target: Tensor) -> None:
    """Raise ValueError if a gradient should flow into the target."""
    if wants_gradient(target):
        raise ValueError("expected a target without gradient, got one that requires it: detach it, or impl='reference'")


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a gradient of any."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
