"""Checks of arguments, the choice of implementation, and the one place where kernels are launched."""

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from recolor_kernels.reference import CRITERIA

Impl = Literal["auto", "triton", "reference"]
Function = TypeVar("Function", bound=Callable[..., Any])

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(
    impl: Impl,
    tensor: Tensor,
    *,
    op: Function,
    triton: Function,
    reference: Function,
    auto_on_cpu: Function | None = None,
) -> Function:
    """The function to run: for auto the registered op (Triton) on CUDA tensors, and auto_on_cpu elsewhere.

    auto_on_cpu: by default the reference. Raises ValueError for another impl, or for Triton on CPU tensors, which only
    its interpreter accepts (for tests).
    """
    if impl == "auto":
        return op if _uses_op(tensor) else auto_on_cpu or reference
    if impl == "reference":
        return reference
    if impl != "triton":
        raise ValueError(f"impl={impl!r}: expected 'auto', 'triton' or 'reference'")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton': expected a CUDA tensor, got one on {tensor.device}")
    return triton


def _uses_op(tensor: Tensor) -> bool:
    """Whether impl="auto" is the op on any device. On a CPU most ops run the reference too, behind a dispatcher that
    takes longer than a small loss. torch.compile needs the op: it cannot trace the cached table of levels in the
    reference. A program that torch.export writes is to run without this package, and is given the reference."""
    return tensor.is_cuda or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())


def launch(kernel: Any, programs: int, /, **arguments: Any) -> None:
    """Run a kernel on the device of its first tensor, which need not be the current one.

    Every launch goes through here, so that tests and the compile report can record it.
    """
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[(programs,)](**arguments, enable_fp_fusion=True)  # explicit, since Triton 3.10 changes the default


def check_rgb_u8(*images: Tensor) -> None:
    """Raise ValueError unless each is a batch of images, uint8 (N,H,W,3), all of one shape and on one device."""
    for rgb in images:
        if rgb.dtype != torch.uint8 or rgb.ndim != 4 or rgb.shape[-1] != 3:
            raise ValueError(f"expected RGB as uint8 (N,H,W,3), got {rgb.dtype} {tuple(rgb.shape)}")
        if rgb.shape != images[0].shape:
            raise ValueError(f"expected images of one shape, got {tuple(images[0].shape)} and {tuple(rgb.shape)}")
    check_one_device(*images)


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
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}: expected one of {', '.join(CRITERIA)}")


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
    """Raise ValueError unless kernels can read and write these types (they compute in float32)."""
    for dtype in dtypes:
        if dtype not in TRITON_DTYPES:
            raise ValueError(f"expected float32, bfloat16 or float16 for Triton, got {dtype}")


def pixels_per_thread(*rgb_u8_NHWC: Tensor, planes: torch.dtype | None = None) -> int:
    """How many adjacent pixels a thread should load or store: 8, 4 or 1.

    rgb_u8_NHWC: contiguous images. planes: type of the planes that the kernel accesses too. 8 with 16-bit planes, so
    that a thread accesses 16 bytes of them; else 4, which are three 32-bit words; 1 if images are not aligned to words
    or do not hold whole groups.
    """
    pixels = rgb_u8_NHWC[0].shape[1] * rgb_u8_NHWC[0].shape[2]
    if pixels % 4 or any(rgb.data_ptr() % 4 for rgb in rgb_u8_NHWC):
        return 1
    # Triton specializes sizes for divisibility by 16 only, and groups of 8 are faster only with that.
    return 8 if planes and planes.itemsize == 2 and pixels % 16 == 0 else 4


def register(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
) -> Any:
    """Register the op recolor_kernels::name from "name(arguments) -> results".

    cpu, cuda: implementations. fake: for tracing, returns tensors of the right shapes, types and strides. mutates:
    arguments that change in place, as the schema says.
    """
    name, parenthesis, rest = schema.partition("(")
    op = torch.library.custom_op(
        f"recolor_kernels::{name}", cpu, mutates_args=mutates, device_types="cpu", schema=parenthesis + rest
    )
    op.register_kernel("cuda")(cuda)
    op.register_fake(fake)
    return op
