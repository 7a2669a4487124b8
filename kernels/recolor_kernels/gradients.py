"""Derivatives of ops: first derivatives work, second ones raise an error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NO_SECOND_DERIVATIVE = "no second derivative: this op is differentiable once; use impl='reference' for more"


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def differentiable_once(gradient: Tensor, *sources: Tensor) -> Tensor:
    """The same gradient, which raises RuntimeError when it is differentiated; else autograd would take it for constant.

    sources: all tensors that it was computed from, so that autograd passes here on its way to any of them.
    """
    if not torch.is_grad_enabled():  # no graph of the backward pass was requested
        return gradient
    result: Tensor = _Once.apply(gradient, *sources)
    return result


def differentiable(
    forward: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """A launcher with the autograd formula of its op, for impl="triton", which bypasses the op."""
    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    function: Any = type(
        "Triton", (torch.autograd.Function,), {name: staticmethod(method) for name, method in methods.items()}
    )
    apply: Callable[..., Any] = function.apply
    return apply


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the gradient of any of these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def check_no_gradient(target: Tensor) -> None:
    """Raise ValueError if autograd would ask for the gradient of a target."""
    if needs_gradient(target):
        raise ValueError("expected a target without gradient, got one that requires it: detach it, or impl='reference'")
