"""The generator's whole loss, L1 and adversarial: value and gradients in one pass."""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import reference
from recolor_kernels.adversarial import patch_sum, reference_patch
from recolor_kernels.gradients import check_no_gradient
from recolor_kernels.launch import Impl, check_criterion, check_floating, check_same_shape, check_triton_dtype
from recolor_kernels.loss_op import LossOp, Term, launch_loss
from recolor_kernels.losses import l1_sum, match_layouts, reference_l1
from recolor_kernels.reference import DEFAULT_CRITERION, Criterion

# ---- kernel ----


@triton.jit
def _generator_kernel(
    prediction_ptr, target_ptr, logits_ptr, prediction_gradient_ptr, logits_gradient_ptr, sums_ptr,
    prediction_factor, logits_factor, prediction_size, logits_size, prediction_blocks, logits_blocks,
    prediction_programs, logits_programs, CRITERION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first programs work on the prediction, the others on the logits, whose label is real."""
    program = tl.program_id(0)
    if program < prediction_programs:
        partial = l1_sum(
            prediction_ptr, target_ptr, prediction_gradient_ptr, prediction_factor, prediction_size, prediction_blocks,
            program, prediction_programs, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)
    else:
        partial = patch_sum(
            logits_ptr, logits_gradient_ptr, logits_factor, logits_size, logits_blocks, program - prediction_programs,
            logits_programs, True, CRITERION, GRADIENT, BLOCK,
        )  # fmt: skip
        tl.store(sums_ptr + program, partial)


# ---- launcher ----


def _launch_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, ...]:
    check_triton_dtype(prediction.dtype, target.dtype, logits.dtype)
    prediction, target = match_layouts(prediction, target)
    l1 = Term.of(prediction, l1_weight, with_gradient)
    adversarial = Term.of(logits.contiguous(), 1.0, with_gradient)
    arguments = {**l1.arguments("prediction"), **adversarial.arguments("logits"), "target_ptr": target}
    means = launch_loss(_generator_kernel, l1, adversarial, **arguments, CRITERION=criterion, GRADIENT=with_gradient)
    return *means, l1.gradient, adversarial.gradient


# ---- registration ----


def _reference_generator(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion, with_gradient: bool
) -> tuple[Tensor, ...]:
    l1, gradient = reference_l1(prediction, target, with_gradient, l1_weight)
    adversarial, logits_gradient = reference_patch(logits, True, criterion, with_gradient)
    return l1_weight * l1 + adversarial, l1, adversarial, gradient, logits_gradient


_generator_loss = LossOp(
    "generator_loss(Tensor prediction, Tensor target, Tensor logits, float l1_weight, str criterion,"
    " bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    triton=_launch_generator,
    cpu=_reference_generator,
    reference=reference.generator_loss,
    weights=lambda prediction, target, logits, l1_weight, criterion: {0: l1_weight, 2: 1.0},
)

# ---- public functions ----


class GeneratorLoss(NamedTuple):
    """0-dimensional tensors; only the total carries a gradient."""

    total: Tensor
    l1: Tensor
    adversarial: Tensor


def generator_loss(
    prediction: Tensor,
    target: Tensor,
    logits: Tensor,
    l1_weight: float,
    criterion: Criterion = DEFAULT_CRITERION,
    impl: Impl = "auto",
) -> GeneratorLoss:
    """l1_weight x l1_loss(prediction, target) + patch_loss(logits, real=True), and both parts, in one launch.

    l1_weight: finite, 0 or more (100 in pix2pix, arXiv:1611.07004). Other arguments, derivatives (of the total, in
    prediction and logits) and errors as of l1_loss and patch_loss.
    """
    check_same_shape(prediction, target)
    check_floating(prediction, logits)
    check_criterion(criterion)
    if not 0 <= l1_weight < math.inf:
        raise ValueError(f"l1_weight={l1_weight}: expected a finite number, 0 or more")
    if impl != "reference":
        check_no_gradient(target)
    outputs = _generator_loss(impl, prediction, target, logits, l1_weight, criterion)
    return GeneratorLoss(total=outputs[0], l1=outputs[1], adversarial=outputs[2])
