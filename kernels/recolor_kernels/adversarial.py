"""Losses on a patch discriminator's logits: value and gradient in one pass. The label is a constant of the kernel."""

import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import memory, reference
from recolor_kernels.launch import Impl, check_criterion, check_floating, check_triton_dtype
from recolor_kernels.loss_op import LossOp, Term, gradient_factors, launch_loss
from recolor_kernels.reference import DEFAULT_CRITERION, Criterion
from recolor_kernels.sums import NOTHING

# ---- kernels ----


@triton.jit
def patch_sum(
    logits_ptr, gradient_ptr, factor, size, blocks, program, programs,
    REAL: tl.constexpr, CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program's part of the sum of the logits' losses; writes factor x the derivative of each."""
    partial = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks, programs):
        first, left = memory.span(block, size, BLOCK)
        value, derivative = _loss_of_logits(memory.load(logits_ptr + first, left, BLOCK), REAL, CRITERION)
        partial += tl.where(tl.arange(0, BLOCK) < left, value, 0.0)
        if GRADIENT:
            memory.store(gradient_ptr + first, factor * derivative, left, BLOCK)
    return tl.sum(partial)


@triton.jit
def _loss_of_logits(logits, REAL: tl.constexpr, CRITERION: tl.constexpr):
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
    first_ptr, second_ptr, first_gradient_ptr, second_gradient_ptr, sums_ptr, first_factor, second_factor,
    first_size, second_size, first_blocks, second_blocks, first_programs, second_programs,
    FIRST_REAL: tl.constexpr, CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One batch of logits; or two, of which the second is fake."""
    program = tl.program_id(0)
    if program < first_programs:
        partial = patch_sum(
            first_ptr, first_gradient_ptr, first_factor, first_size, first_blocks, program, first_programs,
            FIRST_REAL, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)
    else:
        partial = patch_sum(
            second_ptr, second_gradient_ptr, second_factor, second_size, second_blocks, program - first_programs,
            second_programs, False, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)


# ---- launchers ----


def _launch_patch(logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool) -> tuple[Tensor, ...]:
    check_triton_dtype(logits.dtype)
    only = Term.of(logits.contiguous(), 1.0, with_gradient)
    nothing = only._replace(weight=0.0, split=NOTHING)
    return _launch_patches(only, nothing, real, criterion, with_gradient), only.gradient


def _launch_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, ...]:
    check_triton_dtype(on_real.dtype, on_fake.dtype)
    real, fake = (Term.of(logits.contiguous(), 0.5, with_gradient) for logits in (on_real, on_fake))
    return _launch_patches(real, fake, True, criterion, with_gradient), real.gradient, fake.gradient


def _launch_patches(first: Term, second: Term, real: bool, criterion: Criterion, with_gradient: bool) -> Tensor:
    """The weighted sum of both means; the second one's label is fake."""
    arguments = {**first.arguments("first"), **second.arguments("second"), "FIRST_REAL": real}
    return launch_loss(_patch_kernel, first, second, **arguments, CRITERION=criterion, GRADIENT=with_gradient)[0]


# ---- registration ----


def reference_patch(
    logits: Tensor, real: bool, criterion: Criterion, with_gradient: bool, weight: float = 1.0
) -> tuple[Tensor, ...]:
    """(mean loss, gradient of weight x mean), as the op returns them."""
    loss = reference.patch_loss(logits, real, criterion)
    if not with_gradient:
        return loss, logits.new_empty(0)
    derivative = reference.patch_derivative(logits.contiguous(), real, criterion)
    return loss, (derivative * gradient_factors(logits, weight)[0]).to(logits.dtype)


def _reference_discriminator(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, ...]:
    real, real_gradient = reference_patch(on_real, True, criterion, with_gradient, weight=0.5)
    fake, fake_gradient = reference_patch(on_fake, False, criterion, with_gradient, weight=0.5)
    return 0.5 * (real + fake), real_gradient, fake_gradient


_patch_loss = LossOp(
    "patch_loss(Tensor logits, bool real, str criterion, bool with_gradient) -> (Tensor, Tensor)",
    triton=_launch_patch,
    cpu=reference_patch,
    reference=reference.patch_loss,
    weights=lambda *arguments: {0: 1.0},
)
_discriminator_loss = LossOp(
    "discriminator_loss(Tensor on_real, Tensor on_fake, str criterion, bool with_gradient) -> (Tensor, Tensor, Tensor)",
    triton=_launch_discriminator,
    cpu=_reference_discriminator,
    reference=reference.discriminator_loss,
    weights=lambda *arguments: {0: 0.5, 1: 0.5},
)

# ---- public functions ----


def patch_loss(logits: Tensor, real: bool, criterion: Criterion = DEFAULT_CRITERION, impl: Impl = "auto") -> Tensor:
    """Mean loss of logits against the label 1 (real) or 0 (fake): 0-dimensional, float32, or float64.

    bce: cross-entropy with logits (pix2pix, arXiv:1611.07004); l1: mean |sigmoid(x) - label|; mse: mean (x - label)^2
    (least squares GAN, arXiv:1611.04076). logits: any shape and strides, floating, for Triton float32, bfloat16 or
    float16. Differentiable once, on a GPU by one backward pass; impl="reference" any number of times. Raises ValueError
    for another criterion, type or impl, RuntimeError for a second derivative. Not a number for empty tensors.
    """
    check_floating(logits)
    check_criterion(criterion)
    return _patch_loss(impl, logits, real, criterion)[0]


def discriminator_loss(
    on_real: Tensor, on_fake: Tensor, criterion: Criterion = DEFAULT_CRITERION, impl: Impl = "auto"
) -> Tensor:
    """Half of patch_loss(on_real, real=True) plus half of patch_loss(on_fake, real=False), in one launch.

    on_real, on_fake: logits of one floating type; shapes may differ. Result, derivatives and errors as of patch_loss.
    """
    check_floating(on_real, on_fake)
    if on_real.dtype != on_fake.dtype:
        raise ValueError(f"expected logits of one type, got {on_real.dtype} and {on_fake.dtype}")
    check_criterion(criterion)
    return _discriminator_loss(impl, on_real, on_fake, criterion)[0]
