"""Checks of what comes in, the choice of implementation, and the one place where kernels are launched."""

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "reference"]
Function = TypeVar("Function", bound=Callable[..., Any])

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(impl: Impl, tensor: Tensor, *, op: Function, triton: Function, reference: Function) -> Function:
    """What runs: for auto Triton on CUDA tensors, as the registered op, and the reference elsewhere.

    Raises ValueError for another impl, or for Triton on CPU tensors, which only its interpreter takes (for tests).
    """
    if impl == "auto":
        return op if _takes_op(tensor) else reference
    if impl == "reference":
        return reference
    if impl != "triton":
        raise ValueError(f"impl={impl!r}: expected 'auto', 'triton' or 'reference'")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton': expected a CUDA tensor, got one on {tensor.device}")
    return triton


def _takes_op(tensor: Tensor) -> bool:
    """The op on a CPU is the reference too, behind a dispatcher that takes longer than a small loss; but it is opaque
    to a compiler, for which the reference's table of levels is not."""
    return tensor.is_cuda or torch.compiler.is_compiling()


def launch(kernel: Any, programs: int, /, **arguments: Any) -> None:
    """Run a kernel on the device of its first tensor, which need not be the current one.

    Every launch goes through here, so that tests and the compile report can see each one as it is made.
    """
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[(programs,)](**arguments, enable_fp_fusion=True)  # said, since Triton 3.10 changes its default


def check_rgb_u8(*pictures: Tensor) -> None:
    """Raise ValueError unless each is a batch of pictures, uint8 (N,H,W,3), all of one shape and on one device."""
    for rgb in pictures:
        if rgb.dtype != torch.uint8 or rgb.ndim != 4 or rgb.shape[-1] != 3:
            raise ValueError(f"expected RGB as uint8 (N,H,W,3), got {rgb.dtype} {tuple(rgb.shape)}")
        if rgb.shape != pictures[0].shape:
            raise ValueError(f"expected pictures of one shape, got {tuple(pictures[0].shape)} and {tuple(rgb.shape)}")
    check_one_device(*pictures)


def check_one_device(*tensors: Tensor) -> None:
    """Raise ValueError if tensors are on several devices."""
    for tensor in tensors[1:]:
        if tensor.device != tensors[0].device:
            raise ValueError(f"expected tensors on one device, got {tensors[0].device} and {tensor.device}")


def check_floating(*tensors: Tensor) -> None:
    """Raise ValueError unless all are floating and on one device."""
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise ValueError(f"expected a floating tensor, got {tensor.dtype} {tuple(tensor.shape)}")
    check_one_device(*tensors)


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are floating, of equal shapes, on one device."""
    check_floating(prediction, target)
    if prediction.shape != target.shape:
        raise ValueError(f"expected equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")


def check_criterion(criterion: str) -> None:
    """Raise ValueError unless it is a Criterion."""
    if criterion not in ("bce", "l1", "mse"):
        raise ValueError(f"criterion={criterion!r}: expected 'bce', 'l1' or 'mse'")


def check_lab(lightness: Tensor, ab: Tensor) -> None:
    """Raise ValueError unless these are L (N,1,H,W) and ab (N,2,H,W), floating, of one type, on one device."""
    n, _, h, w = lightness.shape if lightness.ndim == 4 else (0, 0, 0, 0)
    if lightness.shape != (n, 1, h, w) or ab.shape != (n, 2, h, w):
        raise ValueError(f"expected L (N,1,H,W) and ab (N,2,H,W), got {tuple(lightness.shape)} and {tuple(ab.shape)}")
    if not lightness.is_floating_point() or lightness.dtype != ab.dtype or lightness.device != ab.device:
        raise ValueError(
            "expected L and ab of one floating type on one device, "
            f"got {lightness.dtype} on {lightness.device} and {ab.dtype} on {ab.device}"
        )


def check_triton_dtype(*dtypes: torch.dtype) -> None:
    """Raise ValueError unless kernels read and write these types; they compute in float32."""
    for dtype in dtypes:
        if dtype not in TRITON_DTYPES:
            raise ValueError(f"expected float32, bfloat16 or float16 for Triton, got {dtype}")


def pixels_per_thread(*rgb_u8_NHWC: Tensor, planes: torch.dtype | None = None) -> int:
    """How many pixels in a row a thread should move of contiguous pictures, beside planes of a type, or none.

    8 beside 16-bit planes, which move by 16 bytes; else 4, which are three whole words; 1 where pictures do not start
    at words or do not hold whole groups.
    """
    pixels = rgb_u8_NHWC[0].shape[1] * rgb_u8_NHWC[0].shape[2]
    if pixels % 4 or any(rgb.data_ptr() % 4 for rgb in rgb_u8_NHWC):
        return 1
    # Triton knows sizes to be divisible by 16 or not at all, and groups of 8 pay only if it knows.
    return 8 if planes and planes.itemsize == 2 and pixels % 16 == 0 else 4


def register(schema: str, *, cpu: Callable[..., Any], cuda: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """A custom op from "name(arguments) -> results", with its implementations and, for tracing, its shapes."""
    name, parenthesis, rest = schema.partition("(")
    op = torch.library.custom_op(
        f"recolor_kernels::{name}", cpu, mutates_args=(), device_types="cpu", schema=parenthesis + rest
    )
    op.register_kernel("cuda")(cuda)
    op.register_fake(fake)
    return op
