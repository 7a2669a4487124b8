"""The ops whose kernels are compiled, how they are called, and the access widths that they require."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.compile_report.cubin import Compiled
from benchmarks.compile_report.ptx import Access

IMAGE_BYTES = 4  # minimum width of a thread's access to uint8 NHWC
PLANE_BYTES = 16  # and to any other tensor
BATCH = 3  # odd, so that no number of programs is a multiple of 16, for which Triton would specialize
SUMS_BYTES = 4  # partial sums of a mean: a few kilobytes at most, read by one program
# One value a channel: a line or two of memory.
OF_CHANNELS = {
    f"{name}_ptr"
    for name in ("mean", "rstd", "running_mean", "running_variance", "weight", "bias", "d_weight", "d_bias")
}


@dataclass(frozen=True)
class Case:
    """An op as it is called, and the minimum width of its accesses to planes; 0 requires none, of images neither."""

    op: str
    call: Callable[[], object]
    plane_bytes: int = PLANE_BYTES

    def least_bytes(self, compiled: Compiled, access: Access) -> int:
        """The minimum width of an access [bytes]; 0 for one value per program, such as a partial sum."""
        if not self.plane_bytes or not access.each_thread:
            return 0
        if access.pointers == {"sums_ptr"} or (access.pointers and access.pointers <= OF_CHANNELS):
            return SUMS_BYTES
        is_image = {compiled.types[name] for name in access.pointers} == {"*u8"}
        return IMAGE_BYTES if is_image else self.plane_bytes


def cases() -> list[Case]:
    """Every op with all its kernels: the fast ones in bfloat16 and float32, the others once."""
    import torch

    dtypes = (torch.bfloat16, torch.float32)
    makers = (_conversions, _losses, _layers)
    return [*(case for dtype in dtypes for make in makers for case in make(dtype)), *_others()]


def _conversions(dtype: Any) -> Iterator[Case]:
    import torch

    from recolor_kernels import gather_gray, gather_lab, lab_to_rgb, lab_to_rgb_u8, rgb_to_gray, rgb_to_lab

    rgb, lightness, ab = _image(), _plane(1, dtype), _plane(2, dtype)
    last = {"dtype": dtype, "memory_format": torch.channels_last, "impl": "triton"}
    conversions: list[tuple[Any, tuple[Any, ...], int]] = [
        (rgb_to_lab, (rgb,), PLANE_BYTES),
        (rgb_to_gray, (rgb,), 4 * dtype.itemsize),
        (gather_lab, (rgb, _picks()), PLANE_BYTES),
        (gather_gray, (rgb, _picks()), 4 * dtype.itemsize),
    ]
    for function, inputs, last_bytes in conversions:
        op = f"{function.__name__} {_name(dtype)}"
        yield Case(op, partial(function, *inputs, dtype=dtype, impl="triton"))
        yield Case(f"{op}, channels last", partial(function, *inputs, **last), last_bytes)
    yield Case(f"lab_to_rgb_u8 {_name(dtype)}", partial(lab_to_rgb_u8, lightness, ab, impl="triton"))
    yield Case(
        f"lab_to_rgb {_name(dtype)}", partial(_differentiate, lambda: lab_to_rgb(lightness, ab, impl="triton").sum())
    )


def _losses(dtype: Any) -> Iterator[Case]:
    import recolor_kernels as ops

    rgb, ab, lab, real, fake = _image(), _plane(2, dtype), _plane(3, dtype), _logits(dtype), _logits(dtype)
    target = ab.detach()
    losses: dict[str, Callable[[], Any]] = {
        "l1_loss": lambda: ops.l1_loss(ab, target, impl="triton"),
        "l1_lab_loss of ab": lambda: ops.l1_lab_loss(ab, rgb, impl="triton"),
        "l1_lab_loss of Lab": lambda: ops.l1_lab_loss(lab, rgb, impl="triton"),
        "ciede2000_loss": lambda: ops.ciede2000_loss(ab, target, impl="triton"),
        "patch_loss": lambda: ops.patch_loss(real, True, impl="triton"),
        "discriminator_loss": lambda: ops.discriminator_loss(real, fake, impl="triton"),
        "generator_loss": lambda: ops.generator_loss(ab, target, fake, 100.0, impl="triton").total,
    }
    for op, loss in losses.items():
        yield Case(f"{op} {_name(dtype)}", partial(_differentiate, loss))


def _layers(dtype: Any) -> Iterator[Case]:
    import torch

    from recolor_kernels import Tracked, norm_act

    channels = 128
    x, skipped = (_plane(channels, dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight, bias = torch.zeros(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    tracked = Tracked(torch.zeros(channels), torch.zeros(channels), torch.tensor(0), 0.1)

    def layer(**options: Any) -> Any:
        return norm_act(x, weight, bias, 0.2, impl="triton", **options).sum()

    layers = {
        "norm_act": partial(layer, tracked=tracked),
        "norm_act instance": partial(layer, instance=True),
        "norm_act joined": partial(layer, skipped_NSHW=skipped, dropout=0.5, seed=torch.tensor(0)),
    }
    for op, call in layers.items():
        yield Case(f"{op} {_name(dtype)}", partial(_differentiate, call))


def _others() -> Iterator[Case]:
    """Kernels for images whose size is odd, other criteria, losses without gradient, metrics."""
    import torch

    import recolor_kernels as ops

    dtype = torch.bfloat16
    rgb, odd, ab, logits = _image(), _image(63), _plane(2, dtype), _logits(dtype)
    odd_lab = _plane(1, dtype, 63), _plane(2, dtype, 63)
    yield Case("rgb_to_lab bfloat16, bytes", lambda: ops.rgb_to_lab(odd, dtype, impl="triton"), 0)
    yield Case("rgb_to_gray bfloat16, bytes", lambda: ops.rgb_to_gray(odd, dtype, impl="triton"), 0)
    yield Case("lab_to_rgb_u8 bfloat16, bytes", lambda: ops.lab_to_rgb_u8(*odd_lab, impl="triton"), 0)
    yield Case("gather", lambda: ops.gather(rgb, _picks(), impl="triton"))
    yield Case("gather, bytes", lambda: ops.gather(odd, _picks(), impl="triton"), 0)
    yield Case("gather_lab bfloat16, bytes", lambda: ops.gather_lab(odd, _picks(), dtype, impl="triton"), 0)
    yield Case("gather_gray bfloat16, bytes", lambda: ops.gather_gray(odd, _picks(), dtype, impl="triton"), 0)
    yield Case("l1_loss bfloat16, no gradient", lambda: ops.l1_loss(ab.detach(), ab.detach(), impl="triton"))
    for criterion in ("l1", "mse"):
        loss = partial(ops.patch_loss, logits, True, criterion, impl="triton")
        yield Case(f"patch_loss {criterion} bfloat16", partial(_differentiate, loss))
    yield Case("color_metrics", lambda: ops.color_metrics(rgb, rgb, impl="triton"))
    yield Case("color_metrics, bytes", lambda: ops.color_metrics(odd, odd, impl="triton"), 0)


def _differentiate(loss: Callable[[], Any]) -> None:
    loss().backward()


def _image(size: int = 64) -> Any:
    import torch

    return torch.zeros(BATCH, size, size, 3, dtype=torch.uint8)


def _picks() -> Any:
    import torch

    return torch.zeros(BATCH, 3, dtype=torch.int64)


def _plane(channels: int, dtype: Any, size: int = 64) -> Any:
    import torch

    return torch.zeros(BATCH, channels, size, size, dtype=dtype, requires_grad=True)


def _logits(dtype: Any) -> Any:
    import torch

    return torch.zeros(16, 1, 14, 14, dtype=dtype, requires_grad=True)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
