"""What all losses share: one pass computes the value and the gradient; the backward pass only scales the gradient.

A loss is a weighted sum of one or two means. Its op takes (arguments..., with_gradient) and returns
(loss, means..., gradients...), where the means are optional and the gradients are empty without with_gradient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, memory
from recolor_kernels.gradients import differentiable, differentiable_once, needs_gradient
from recolor_kernels.launch import Impl, choose, register
from recolor_kernels.sums import BLOCK, NOTHING, Split, empty_sums, total

SECOND_BACKWARD = (
    "a second backward pass through one loss: the first one scaled its gradient in place; compute the loss again"
)

# ---- kernel ----


@triton.jit
def _scale_kernel(gradient_ptr, d_loss_ptr, factor, size, blocks, programs, BLOCK: tl.constexpr):
    """The gradient times d_loss x factor, in place. If that is 1, as usual, nothing is read or written."""
    scale = tl.load(d_loss_ptr).to(tl.float32) * factor
    if scale != 1:
        for block in range(tl.program_id(0), blocks, programs):
            first, left = memory.span(block, size, BLOCK)
            memory.store(gradient_ptr + first, memory.load(gradient_ptr + first, left, BLOCK) * scale, left, BLOCK)


# ---- launchers ----


def gradient_factors(tensor: Tensor, weight: float) -> tuple[float, float]:
    """What the forward and the backward pass multiply derivatives by, for the gradient of weight x mean over a tensor.

    The product is weight / size. In float16 that could underflow before a loss scale is applied, so the backward pass
    multiplies by it; in other types the forward pass does.
    """
    factor = weight / tensor.numel() if tensor.numel() else math.nan
    return (1.0, factor) if tensor.dtype == torch.float16 else (factor, 1.0)


class Term(NamedTuple):
    """One mean of a loss, as a kernel computes it, with the gradient of weight x mean."""

    values: Tensor  # dense: read in the order of memory
    gradient: Tensor  # to be written, in the same order; empty if none is needed
    weight: float
    split: Split

    @classmethod
    def of(cls, values: Tensor, weight: float, with_gradient: bool, blocks: int | None = None) -> "Term":
        """values: dense. blocks: into which the kernel splits the mean; by default of BLOCK values each."""
        split = Split.of_tensor(values) if blocks is None else Split.of(values.numel(), blocks)
        gradient = torch.empty_like(values) if with_gradient else values.new_empty(0)
        return cls(values, gradient, weight, split)

    @property
    def factor(self) -> float:
        """What the kernel multiplies derivatives by."""
        return gradient_factors(self.values, self.weight)[0]

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of a kernel that adds up this mean, all beginning with a name: name_ptr, name_size, and so on."""
        return {
            f"{name}_ptr": self.values,
            f"{name}_gradient_ptr": self.gradient,
            f"{name}_factor": self.factor,
            f"{name}_size": self.values.numel(),
            f"{name}_blocks": self.split.blocks,
            f"{name}_programs": self.split.programs,
        }


def launch_loss(
    kernel: Any, first: Term, second: Term | None = None, /, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch a kernel that writes the partial sums of its terms to sums_ptr, the first term's first; add them up.

    Returns (weighted sum, first mean, second mean), 0-dimensional float32; not a number for a mean over nothing.
    """
    splits = (first.split, second.split if second else NOTHING)
    sums = empty_sums(first.values, *splits)
    if len(sums):
        launch.launch(kernel, len(sums), **arguments, sums_ptr=sums, BLOCK=BLOCK)
    return total(sums, *splits, weights=(first.weight, second.weight if second else 0.0))


# ---- registration and choice of implementation ----


class LossOp:
    """A loss in all its implementations; call it with an impl and the op's arguments, all but with_gradient.

    schema: "name(arguments..., bool with_gradient) -> (Tensor, ...)".
    triton, cpu: the op on CUDA tensors and on others.
    fake: for tracing, with results of the right shapes, types and strides; by default cpu.
    reference: of the arguments without with_gradient, to the loss or (loss, means...); differentiable by autograd.
    weights: of the arguments, to {number of a differentiable argument: weight of the mean that it goes into}, in the
    order of the gradients.
    fast_on_cpu: whether cpu takes less time than the reference and autograd, so that impl="auto" is the op there too.
    """

    def __init__(
        self,
        schema: str,
        *,
        triton: Callable[..., tuple[Tensor, ...]],
        cpu: Callable[..., tuple[Tensor, ...]],
        reference: Callable[..., Any],
        weights: Callable[..., dict[int, float]],
        fake: Callable[..., tuple[Tensor, ...]] | None = None,
        fast_on_cpu: bool = False,
    ) -> None:
        self._reference = reference
        self._weights = weights
        self._op = register(schema, cpu=cpu, cuda=triton, fake=fake or cpu)
        self._op.register_autograd(_backward, setup_context=self._setup_context)
        self._auto_on_cpu = self._op if fast_on_cpu else self._plain
        self._triton = differentiable(triton, self._setup_context, partial(_backward, triton=True))

    def __call__(self, impl: Impl, *arguments: Any) -> tuple[Tensor, ...]:
        """(loss, means..., gradients...); raises ValueError as choose does."""
        with_gradient = needs_gradient(*(arguments[number] for number in self._weights(*arguments)))
        function = choose(
            impl, arguments[0], op=self._op, triton=self._triton, reference=self._plain, auto_on_cpu=self._auto_on_cpu
        )
        outputs: tuple[Tensor, ...] = function(*arguments, with_gradient)
        return outputs

    def _plain(self, *arguments: Any) -> tuple[Tensor, ...]:
        *arguments_of_reference, _ = arguments
        outputs = self._reference(*arguments_of_reference)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *arguments, with_gradient = inputs
        weights = self._weights(*arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1 if with_gradient else 0 :])
        ctx.save_for_backward(*output[len(output) - len(weights) :], *(inputs[number] for number in weights))
        ctx.factors = {number: gradient_factors(inputs[number], weight)[1] for number, weight in weights.items()}
        ctx.arguments, ctx.is_spent = len(inputs), False


def _backward(
    ctx: Any, d_loss: Tensor | None, *_: Tensor | None, triton: bool | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients of a LossOp's inputs. triton: whether Triton scales them; by default on CUDA tensors."""
    result: list[Tensor | None] = [None] * ctx.arguments
    if d_loss is None:
        return tuple(result)
    if ctx.is_spent:
        raise RuntimeError(SECOND_BACKWARD)
    saved = ctx.saved_tensors  # read once: checkpointing recomputes them, and allows no second read
    gradients, sources = saved[: len(ctx.factors)], saved[len(ctx.factors) :]
    triton = saved[0].is_cuda if triton is None else triton
    # Not where the backward pass is itself differentiated, nor where another type of tensor is being traced.
    in_place = triton and not torch.is_grad_enabled() and type(saved[0]) is Tensor
    for (number, factor), gradient in zip(ctx.factors.items(), gradients, strict=True):
        if ctx.needs_input_grad[number]:
            if in_place:
                _scale(gradient, d_loss, factor)
            scaled = gradient if in_place else gradient * (d_loss.detach() * factor)
            result[number] = differentiable_once(scaled, d_loss, *sources)
    ctx.is_spent = in_place
    return tuple(result)


def _scale(gradient: Tensor, d_loss: Tensor, factor: float) -> None:
    """Multiply a gradient by factor x d_loss, in place."""
    split = Split.of_tensor(gradient)
    if split.programs:
        launch.launch(
            _scale_kernel, split.programs, gradient_ptr=gradient, d_loss_ptr=d_loss, factor=factor,
            size=gradient.numel(), blocks=split.blocks, programs=split.programs, BLOCK=BLOCK,
        )  # fmt: skip
