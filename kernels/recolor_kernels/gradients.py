"""Derivatives: once, not twice; those of losses are made in the forward pass and only scaled in the backward pass."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, parts
from recolor_kernels.sums import BLOCK, Share

NO_SECOND_DERIVATIVE = "no second derivative: this op is differentiable once; use impl='reference' for more"
SPENT = "a second backward pass through one loss: its gradient is scaled in place, and spent; compute the loss again"

# ---- any op ----


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def once(gradient: Tensor, *sources: Tensor) -> Tensor:
    """A gradient that raises RuntimeError when it is differentiated, which would otherwise count as zero in silence.

    sources: all that it was computed from, so that autograd comes by here on its way to any of them.
    """
    if not torch.is_grad_enabled():  # nobody asked for a graph of the backward pass
        return gradient
    result: Tensor = _Once.apply(gradient, *sources)
    return result


def differentiable(
    forward: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """A launcher with the autograd formula that its op has, for impl="triton"."""
    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    function: Any = type(
        "Triton", (torch.autograd.Function,), {name: staticmethod(part) for name, part in methods.items()}
    )
    apply: Callable[..., Any] = function.apply
    return apply


# ---- losses ----


def steps(tensor: Tensor, weight: float) -> tuple[float, float]:
    """Factors that turn derivatives into the gradient of weight x mean: one for the forward, one for the backward pass.

    float16 would lose weight / size to underflow before a loss scale can save it, so there it waits.
    """
    step = weight / tensor.numel() if tensor.numel() else math.nan
    return (1.0, step) if tensor.dtype == torch.float16 else (step, 1.0)


def empty_gradient(tensor: Tensor, with_gradient: bool) -> Tensor:
    """Room for a gradient, or nothing."""
    return torch.empty_like(tensor) if with_gradient else tensor.new_empty(0)


def made_forward(op: Any, launcher: Callable[..., Any], weights: Callable[..., dict[int, float]]) -> Callable[..., Any]:
    """Give an op of (tensors..., with_gradient) -> (loss, means..., gradients...) its formula, and its launcher too.

    weights: from the op's arguments to the weight of the mean that each differentiable argument (by number) goes into,
    in the order of the gradients. Returns the differentiable launcher.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, with_gradient = inputs
        later = {number: steps(inputs[number], weight)[1] for number, weight in weights(*inputs).items()}
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1 if with_gradient else 0 :])
        ctx.save_for_backward(*output[len(output) - len(later) :], *(inputs[number] for number in later))
        ctx.later, ctx.arguments, ctx.spent = later, len(inputs), False

    def backward(
        ctx: Any, d_loss: Tensor | None, *_: Tensor | None, triton: bool | None = None
    ) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None] * ctx.arguments
        if d_loss is None:
            return tuple(result)
        if ctx.spent:
            raise RuntimeError(SPENT)
        saved = ctx.saved_tensors  # once: checkpointing recomputes them, and allows no second time
        gradients, sources = saved[: len(ctx.later)], saved[len(ctx.later) :]
        triton = saved[0].is_cuda if triton is None else triton
        # Not where the backward pass is itself differentiated, nor where another type of tensor is being traced.
        in_place = triton and not torch.is_grad_enabled() and type(saved[0]) is Tensor
        for (number, factor), gradient in zip(ctx.later.items(), gradients, strict=True):
            if ctx.needs_input_grad[number]:
                if in_place:
                    _scale(gradient, d_loss, factor)
                scaled = gradient if in_place else gradient * (d_loss.detach() * factor)
                result[number] = once(scaled, d_loss, *sources)
        ctx.spent = in_place
        return tuple(result)

    op.register_autograd(backward, setup_context=setup_context)
    return differentiable(launcher, setup_context, partial(backward, triton=True))


def _scale(gradient: Tensor, d_loss: Tensor, factor: float) -> None:
    """Multiply a gradient by factor x d_loss, in place."""
    share = Share.of_tensor(gradient)
    if share.programs:
        launch.launch(
            _scale_kernel, share.programs, gradient_ptr=gradient, d_loss_ptr=d_loss, factor=factor,
            size=gradient.numel(), blocks=share.blocks, programs=share.programs, BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit
def _scale_kernel(gradient_ptr, d_loss_ptr, factor, size, blocks, programs, BLOCK: tl.constexpr):
    """The gradient times d_loss x factor, in place. By 1, the usual product, nothing is read or written."""
    scale = tl.load(d_loss_ptr).to(tl.float32) * factor
    if scale != 1:
        for block in range(tl.program_id(0), blocks, programs):
            first, left = parts.span(block, size, BLOCK)
            parts.store(gradient_ptr + first, parts.load(gradient_ptr + first, left, BLOCK) * scale, left, BLOCK)
