"""Losses on a patch discriminator's logits, and the generator's whole loss: value and gradient in one pass.

No label tensor exists: the label is part of the kernel.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, parts, reference
from recolor_kernels.gradients import empty_gradient, made_forward, steps
from recolor_kernels.launch import Impl, check_floating, check_triton_dtype, choose, register
from recolor_kernels.losses import (
    alike,
    check_alike,
    empty_loss,
    l1_sum,
    reference_l1,
    refuse_gradient,
    wants_gradient,
)
from recolor_kernels.reference import Criterion
from recolor_kernels.sums import BLOCK, NOTHING, Share, empty_sums, total

# ---- kernels ----


@triton.jit
def _patch_sum(
    logits_ptr, gradient_ptr, step, size, blocks, program, programs,
    REAL: tl.constexpr, CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's part of the sum of the logits' losses; writes step x the derivative of each."""
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks, programs):
        first, left = parts.span(block, size, BLOCK)
        value, derivative = _patch_loss(parts.load(logits_ptr + first, left, BLOCK), REAL, CRITERION)
        partial += tl.where(tl.arange(0, BLOCK) < left, value, 0.0)
        if GRADIENT:
            parts.store(gradient_ptr + first, step * derivative, left, BLOCK)
    return tl.sum(partial)


@triton.jit
def _patch_loss(logits, REAL: tl.constexpr, CRITERION: tl.constexpr):
    """The loss of each logit against its label, and its derivative."""
    # With s = -x for real and s = x for fake, bce is log(1 + e^s) and l1 is 1 / (1 + e^-s), whatever the label.
    TOWARD: tl.constexpr = -1.0 if REAL else 1.0
    s = TOWARD * logits
    small = tl.exp(-tl.abs(s))  # in (0, 1], so that nothing overflows
    larger = 1 / (1 + small)
    probability = tl.where(s >= 0, larger, small * larger)
    if CRITERION == "bce":
        value, derivative = tl.maximum(s, 0.0) + _log1p(small), TOWARD * probability
    elif CRITERION == "l1":
        value, derivative = probability, TOWARD * small * larger * larger
    else:
        difference = logits - 1.0 if REAL else logits
        value, derivative = difference * difference, 2 * difference
    return value, derivative


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1], exact to rounding for small x too (Kahan; Higham, 2002, section 1.14.1)."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def _patch_kernel(
    first_ptr, second_ptr, first_gradient_ptr, second_gradient_ptr, sums_ptr, first_step, second_step,
    first_size, second_size, first_blocks, second_blocks, first_programs, second_programs,
    FIRST_REAL: tl.constexpr, CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One batch of logits; or two, of which the second is fake."""
    program = tl.program_id(0)
    if program < first_programs:
        partial = _patch_sum(
            first_ptr, first_gradient_ptr, first_step, first_size, first_blocks, program, first_programs,
            FIRST_REAL, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)
    else:
        partial = _patch_sum(
            second_ptr, second_gradient_ptr, second_step, second_size, second_blocks, program - first_programs,
            second_programs, False, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)


@triton.jit
def _generator_kernel(
    prediction_ptr, target_ptr, logits_ptr, gradient_ptr, logits_gradient_ptr, sums_ptr, step, logits_step,
    size, logits_size, blocks, logits_blocks, programs, logits_programs,
    CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < programs:
        partial = l1_sum(
            prediction_ptr, target_ptr, gradient_ptr, step, size, blocks, program, programs, GRADIENT, BLOCK
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)
    else:
        partial = _patch_sum(
            logits_ptr, logits_gradient_ptr, logits_step, logits_size, logits_blocks, program - programs,
            logits_programs, True, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)


# ---- launchers ----


class _Logits(NamedTuple):
    """One batch of logits on its way into a kernel."""

    values: Tensor
    gradient: Tensor
    step: float
    share: Share

    @classmethod
    def of(cls, logits: Tensor, weight: float, with_gradient: bool) -> "_Logits":
        logits = logits.contiguous()
        gradient = empty_gradient(logits, with_gradient)
        return cls(logits, gradient, steps(logits, weight)[0], Share.of_tensor(logits))


def _launch_patches(first: _Logits, second: _Logits, real: bool, criterion: Criterion, with_gradient: bool) -> Tensor:
    """The partial sums of both."""
    sums = empty_sums(first.values, first.share, second.share)
    if len(sums):
        launch.launch(
            _patch_kernel, len(sums), first_ptr=first.values, second_ptr=second.values,
            first_gradient_ptr=first.gradient, second_gradient_ptr=second.gradient, sums_ptr=sums,
            first_step=first.step, second_step=second.step, first_size=first.values.numel(),
            second_size=second.values.numel(), first_blocks=first.share.blocks, second_blocks=second.share.blocks,
            first_programs=first.share.programs, second_programs=second.share.programs, FIRST_REAL=real,
            CRITERION=criterion, GRADIENT=with_gradient, BLOCK=BLOCK,
        )  # fmt: skip
    return sums


def _launch_patch(logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool) -> tuple[Tensor, Tensor]:
    check_triton_dtype(logits.dtype)
    only = _Logits.of(logits, 1.0, with_gradient)
    sums = _launch_patches(only, only._replace(share=NOTHING), real, criterion, with_gradient)
    return total(sums, only.share)[0], only.gradient


def _launch_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_triton_dtype(on_real.dtype, on_fake.dtype)
    real, fake = (_Logits.of(logits, 0.5, with_gradient) for logits in (on_real, on_fake))
    sums = _launch_patches(real, fake, True, criterion, with_gradient)
    return total(sums, real.share, fake.share, weights=(0.5, 0.5))[0], real.gradient, fake.gradient


def _launch_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_triton_dtype(prediction.dtype, target.dtype, logits.dtype)
    prediction, target = alike(prediction, target)
    gradient, share = empty_gradient(prediction, with_gradient), Share.of_tensor(prediction)
    judged = _Logits.of(logits, 1.0, with_gradient)
    sums = empty_sums(prediction, share, judged.share)
    if len(sums):
        launch.launch(
            _generator_kernel, len(sums), prediction_ptr=prediction, target_ptr=target, logits_ptr=judged.values,
            gradient_ptr=gradient, logits_gradient_ptr=judged.gradient, sums_ptr=sums,
            step=steps(prediction, l1_weight)[0], logits_step=judged.step, size=prediction.numel(),
            logits_size=logits.numel(), blocks=share.blocks, logits_blocks=judged.share.blocks,
            programs=share.programs, logits_programs=judged.share.programs, CRITERION=criterion,
            GRADIENT=with_gradient, BLOCK=BLOCK,
        )  # fmt: skip
    return *total(sums, share, judged.share, weights=(l1_weight, 1.0)), gradient, judged.gradient


# ---- registration ----


def _reference_patch(
    logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    loss = reference.patch_loss(logits, real, criterion)
    if not with_gradient:
        return loss, logits.new_empty(0)
    derivative = reference.patch_derivative(logits.contiguous(), real, criterion)
    return loss, (derivative * steps(logits, weight)[0]).to(logits.dtype)


def _reference_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    real, real_gradient = _reference_patch(on_real, True, criterion, with_gradient, weight=0.5)
    fake, fake_gradient = _reference_patch(on_fake, False, criterion, with_gradient, weight=0.5)
    return 0.5 * (real + fake), real_gradient, fake_gradient


def _reference_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    l1, gradient = reference_l1(prediction, target, with_gradient, l1_weight)
    adversarial, logits_gradient = _reference_patch(logits, True, criterion, with_gradient)
    return l1_weight * l1 + adversarial, l1, adversarial, gradient, logits_gradient


def _empty_patch(logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return empty_loss(logits), empty_gradient(logits.contiguous(), with_gradient)


def _empty_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    real, fake = (empty_gradient(logits.contiguous(), with_gradient) for logits in (on_real, on_fake))
    return empty_loss(on_real), real, fake


def _empty_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    l1, adversarial = empty_loss(prediction) + empty_loss(target), empty_loss(logits)
    gradient = empty_gradient(alike(prediction, target)[0], with_gradient)
    return l1 + adversarial, l1, adversarial, gradient, empty_gradient(logits.contiguous(), with_gradient)


_patch_loss_op = register(
    "patch_loss(Tensor logits, bool real, str criterion, bool with_gradient) -> (Tensor, Tensor)",
    cpu=_reference_patch,
    cuda=_launch_patch,
    fake=_empty_patch,
)
_discriminator_loss = register(
    "discriminator_loss(Tensor on_real, Tensor on_fake, str criterion, bool with_gradient) -> (Tensor, Tensor, Tensor)",
    cpu=_reference_discriminator,
    cuda=_launch_discriminator,
    fake=_empty_discriminator,
)
_generator_loss = register(
    "generator_loss(Tensor prediction, Tensor target, Tensor logits, float l1_weight, str criterion,"
    " bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_reference_generator,
    cuda=_launch_generator,
    fake=_empty_generator,
)
_triton_patch = made_forward(_patch_loss_op, _launch_patch, lambda *inputs: {0: 1.0})
_triton_discriminator = made_forward(_discriminator_loss, _launch_discriminator, lambda *inputs: {0: 0.5, 1: 0.5})
_triton_generator = made_forward(_generator_loss, _launch_generator, lambda *inputs: {0: inputs[3], 2: 1.0})

# ---- public functions ----


class GeneratorLoss(NamedTuple):
    """0-dimensional tensors; only the total carries a gradient."""

    total: Tensor
    l1: Tensor
    adversarial: Tensor


def patch_loss(logits: Tensor, real: bool, criterion: Criterion = "bce", impl: Impl = "auto") -> Tensor:
    """How far logits are from the label 1 (real) or 0 (fake), as a mean: 0-dimensional, float32, or float64.

    bce: cross-entropy with logits (pix2pix, arXiv:1611.07004); l1: mean |sigmoid(x) - label|; mse: mean (x - label)^2
    (least squares GAN, arXiv:1611.04076). logits: any shape and strides, floating, for Triton float32, bfloat16 or
    float16. Differentiable once, on a GPU by one backward pass; impl="reference" any number of times. Raises ValueError
    for another criterion, type or impl, RuntimeError for a second derivative.
    """
    check_floating(logits)
    _check_criterion(criterion)
    function = choose(impl, logits, op=_patch_loss_op, triton=_triton_patch, reference=_differentiable_patch)
    loss: Tensor = function(logits, real, criterion, wants_gradient(logits))[0]
    return loss


def discriminator_loss(on_real: Tensor, on_fake: Tensor, criterion: Criterion = "bce", impl: Impl = "auto") -> Tensor:
    """Half of patch_loss(on_real, real=True) plus half of patch_loss(on_fake, real=False), in one launch.

    on_real, on_fake: logits of one floating type; shapes may differ. Result, derivatives and errors as of patch_loss.
    """
    check_floating(on_real, on_fake)
    if on_real.dtype != on_fake.dtype:
        raise ValueError(f"expected logits of one type, got {on_real.dtype} and {on_fake.dtype}")
    _check_criterion(criterion)
    function = choose(
        impl, on_real, op=_discriminator_loss, triton=_triton_discriminator, reference=_differentiable_discriminator
    )
    loss: Tensor = function(on_real, on_fake, criterion, wants_gradient(on_real, on_fake))[0]
    return loss


def generator_loss(
    prediction: Tensor,
    target: Tensor,
    logits: Tensor,
    l1_weight: float,
    criterion: Criterion = "bce",
    impl: Impl = "auto",
) -> GeneratorLoss:
    """l1_weight x l1_loss(prediction, target) + patch_loss(logits, real=True), and both parts, in one launch.

    l1_weight: finite, 0 or more. Other arguments, derivatives (of the total, in prediction and logits) and errors as of
    l1_loss and patch_loss.
    """
    check_alike(prediction, target)
    check_floating(prediction, logits)
    _check_criterion(criterion)
    if not 0 <= l1_weight < math.inf:
        raise ValueError(f"l1_weight={l1_weight}: expected a finite number, 0 or more")
    if impl != "reference":
        refuse_gradient(target)
    function = choose(
        impl, prediction, op=_generator_loss, triton=_triton_generator, reference=_differentiable_generator
    )
    outputs = function(prediction, target, logits, l1_weight, criterion, wants_gradient(prediction, logits))
    return GeneratorLoss(*outputs[:3])


def _differentiable_patch(logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool) -> tuple[Tensor]:
    return (reference.patch_loss(logits, real, criterion),)


def _differentiable_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor]:
    return (reference.discriminator_loss(on_real, on_fake, criterion),)


def _differentiable_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.generator_loss(prediction, target, logits, l1_weight, criterion)


def _check_criterion(criterion: str) -> None:
    if criterion not in ("bce", "l1", "mse"):
        raise ValueError(f"criterion={criterion!r}: expected 'bce', 'l1' or 'mse'")
