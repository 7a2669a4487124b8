"""What `benchmarks.kernels` times: every op with its inputs, its minimum traffic, and kornia's equivalent.

Least bytes: each input read once, each result written once; a loss computes its gradient in the same pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

import recolor_kernels
from benchmarks.kernels.report import Kind
from recolor_kernels import AB_SCALE, Impl
from recolor_kernels.constants import L_SCALE

FEATURES = 64  # channels

Tensors = tuple[Tensor, ...]
Forward = Callable[..., Any]


class Size(NamedTuple):
    """A batch of square images, and of the logits of a 70 px PatchGAN on them."""

    n: int
    side_px: int

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.n * self.side_px**2

    @property
    def patches_a_side(self) -> int:
        """Logits along one side of an image."""
        return self.side_px // 8 - 2

    @property
    def logits(self) -> int:
        """Of all images."""
        return self.n * self.patches_a_side**2

    def __str__(self) -> str:
        return f"{self.n}x{self.side_px}x{self.side_px}"


class Draw(NamedTuple):
    """Random inputs of one size."""

    size: Size
    dtype: torch.dtype
    generator: Generator

    def rgb(self) -> Tensor:
        """Images: uint8 (N,H,W,3)."""
        n, side = self.size
        shape = (n, side, side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.generator.device, generator=self.generator)

    def planes(self, channels: int, extent: float = 1.0) -> Tensor:
        """(N,C,H,W), uniform in [-extent, extent]."""
        return self._uniform((self.size.n, channels, self.size.side_px, self.size.side_px), extent)

    def logits(self) -> Tensor:
        """(N,1,h,w), uniform in [-4, 4]."""
        side = self.size.patches_a_side
        return self._uniform((self.size.n, 1, side, side), 4.0)

    def picks(self) -> Tensor:
        """Numbers of images and two flips: int64 (N,3)."""
        n, device = self.size.n, self.generator.device
        numbers = torch.randint(0, n, (n, 1), device=device, generator=self.generator)
        flips = torch.randint(0, 2, (n, 2), device=device, generator=self.generator)
        return torch.cat((numbers, flips), dim=1)

    def lab(self) -> Tensors:
        """L (N,1,H,W) and ab (N,2,H,W), mostly in gamut."""
        return self.planes(1), self.planes(2, 0.3)

    def features(self) -> Tensor:
        """(N,64,H/4,W/4), channels last, uniform in [-1, 1]."""
        n, side = self.size
        features = self._uniform((n, FEATURES, side // 4, side // 4), 1.0)
        return features.contiguous(memory_format=torch.channels_last)

    def channels(self) -> Tensor:
        """A value for each of the features' channels: float32 (64,), uniform in [-1, 1]."""
        return self._replace(dtype=torch.float32)._uniform((FEATURES,), 1.0)

    def _uniform(self, shape: tuple[int, ...], extent: float) -> Tensor:
        values = torch.rand(shape, device=self.generator.device, generator=self.generator)
        return ((values * 2 - 1) * extent).to(self.dtype)


@dataclass(frozen=True)
class Case:
    """One op. `forward(impl, dtype, *inputs)` calls it; gradients are computed for inputs that require them."""

    name: str
    kind: Kind
    make: Callable[[Draw], Tensors]
    forward: Forward
    bytes_a_pixel: int
    bytes_a_logit: int = 0
    bytes_an_image: int = 0
    dtype: torch.dtype = torch.bfloat16
    gradient: Literal["none", "of the loss", "given"] = "none"  # given: the last input is the gradient of the result
    kornia: Callable[[Any], Forward] | None = None

    def least_bytes(self, size: Size) -> int:
        """Bytes that one call reads and writes at least."""
        return self.bytes_a_pixel * size.pixels + self.bytes_a_logit * size.logits + self.bytes_an_image * size.n

    def inputs(self, size: Size, device: torch.device, seed: int) -> Tensors:
        """Random inputs, the same for the same seed and device."""
        return self.make(Draw(size, self.dtype, Generator(device).manual_seed(seed)))

    def side(self, forward: Forward) -> Callable[..., tuple[Tensors, Tensors]]:
        """A function from inputs to (values, gradients), by autograd if the case has a gradient."""
        if self.gradient == "none":
            return lambda *inputs: (_flat(forward(*inputs)), ())
        return partial(_with_gradient, forward, self.gradient == "given")

    def calls(self, impl: Impl, dtype: torch.dtype | None = None) -> Forward:
        """Our op by an impl, with results of a type, by default the case's."""
        return partial(self.forward, impl, dtype or self.dtype)


def _with_gradient(forward: Forward, given: bool, *inputs: Tensor) -> tuple[Tensors, Tensors]:
    arguments, upstream = (inputs[:-1], inputs[-1]) if given else (inputs, None)
    values = forward(*arguments)
    value = values[0] if isinstance(values, tuple) else values
    gradients = torch.autograd.grad(value, [tensor for tensor in arguments if tensor.requires_grad], upstream)
    return tuple(each.detach() for each in _flat(values)), gradients


def _flat(values: Any) -> Tensors:
    return tuple(values) if isinstance(values, tuple) else (values,)


# ---- the ops ----


def _rgb_to_lab(impl: Impl, dtype: torch.dtype, rgb: Tensor, **options: Any) -> Tensors:
    return recolor_kernels.rgb_to_lab(rgb, dtype, impl=impl, **options)


def _rgb_to_gray(impl: Impl, dtype: torch.dtype, rgb: Tensor) -> Tensors:
    return recolor_kernels.rgb_to_gray(rgb, dtype, impl=impl)


def _gather(impl: Impl, _: torch.dtype, images: Tensor, picks: Tensor) -> Tensor:
    return recolor_kernels.gather(images, picks, impl=impl)


def _gather_lab(impl: Impl, dtype: torch.dtype, images: Tensor, picks: Tensor) -> Tensors:
    return recolor_kernels.gather_lab(images, picks, dtype, impl=impl)


def _gather_gray(impl: Impl, dtype: torch.dtype, images: Tensor, picks: Tensor) -> Tensors:
    return recolor_kernels.gather_gray(images, picks, dtype, impl=impl)


def _of(op: str, *options: Any) -> Forward:
    """An op whose results have the type of its inputs; options are passed after them."""

    def forward(impl: Impl, dtype: torch.dtype, *inputs: Tensor) -> Any:
        return getattr(recolor_kernels, op)(*inputs, *options, impl=impl)

    return forward


def _with_grad(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_()


# ---- kornia: in Lab units (L* up to 100), without scaling to the networks' ranges ----


def _kornia_rgb_to_lab(kornia: Any, dtype: torch.dtype = torch.bfloat16) -> Forward:
    return lambda rgb: kornia.color.rgb_to_lab(rgb.permute(0, 3, 1, 2).float() / 255).to(dtype)


def _kornia_rgb_to_lab_float32(kornia: Any) -> Forward:
    return _kornia_rgb_to_lab(kornia, torch.float32)


def _kornia_rgb(kornia: Any, lightness: Tensor, ab: Tensor) -> Tensor:
    """In [0, 1], float32."""
    lab = torch.cat((lightness.float() * L_SCALE + L_SCALE, ab.float() * AB_SCALE), dim=1)
    rgb: Tensor = kornia.color.lab_to_rgb(lab)
    return rgb


def _kornia_lab_to_rgb(kornia: Any) -> Forward:
    return lambda lightness, ab: _kornia_rgb(kornia, lightness, ab).to(lightness.dtype)


def _kornia_lab_to_rgb_u8(kornia: Any) -> Forward:
    def forward(lightness: Tensor, ab: Tensor) -> Tensor:
        rgb = _kornia_rgb(kornia, lightness, ab)
        return (rgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return forward


# ---- the table ----

_RGB = 3
_BF16 = 2

CASES = (
    Case(
        "rgb_to_lab",
        "conversion",
        lambda draw: (draw.rgb(),),
        _rgb_to_lab,
        bytes_a_pixel=_RGB + 3 * _BF16,
        kornia=_kornia_rgb_to_lab,
    ),
    Case(
        "rgb_to_lab_channels_last",
        "conversion",
        lambda draw: (draw.rgb(),),
        partial(_rgb_to_lab, memory_format=torch.channels_last),
        bytes_a_pixel=_RGB + 3 * _BF16,
    ),
    Case(
        "rgb_to_lab_float32",
        "conversion",
        lambda draw: (draw.rgb(),),
        _rgb_to_lab,
        bytes_a_pixel=_RGB + 3 * 4,
        dtype=torch.float32,
        kornia=_kornia_rgb_to_lab_float32,
    ),
    Case("rgb_to_gray", "conversion", lambda draw: (draw.rgb(),), _rgb_to_gray, bytes_a_pixel=_RGB + 4 * _BF16),
    Case(
        "lab_to_rgb_u8",
        "conversion",
        Draw.lab,
        _of("lab_to_rgb_u8"),
        bytes_a_pixel=3 * _BF16 + _RGB,
        kornia=_kornia_lab_to_rgb_u8,
    ),
    Case(
        "lab_to_rgb",
        "conversion",
        Draw.lab,
        _of("lab_to_rgb"),
        bytes_a_pixel=(3 + 3) * _BF16,
        kornia=_kornia_lab_to_rgb,
    ),
    # The backward pass reads Lab again.
    Case(
        "lab_to_rgb_gradient",
        "conversion",
        lambda draw: (*map(_with_grad, draw.lab()), draw.planes(3)),
        _of("lab_to_rgb"),
        bytes_a_pixel=(3 + 3) * _BF16 + (3 + 3 + 3) * _BF16,
        gradient="given",
    ),
    Case(
        "gather",
        "conversion",
        lambda draw: (draw.rgb(), draw.picks()),
        _gather,
        bytes_a_pixel=2 * _RGB,
        bytes_an_image=3 * 8,
    ),
    Case(
        "gather_lab",
        "conversion",
        lambda draw: (draw.rgb(), draw.picks()),
        _gather_lab,
        bytes_a_pixel=_RGB + 3 * _BF16,
        bytes_an_image=3 * 8,
    ),
    Case(
        "gather_gray",
        "conversion",
        lambda draw: (draw.rgb(), draw.picks()),
        _gather_gray,
        bytes_a_pixel=_RGB + 4 * _BF16,
        bytes_an_image=3 * 8,
    ),
    Case(
        "l1_loss",
        "loss",
        lambda draw: (_with_grad(draw.planes(2)), draw.planes(2)),
        _of("l1_loss"),
        bytes_a_pixel=2 * 3 * _BF16,
        gradient="of the loss",
    ),
    Case(
        "l1_lab_loss",
        "loss",
        lambda draw: (_with_grad(draw.planes(3)), draw.rgb()),
        _of("l1_lab_loss"),
        bytes_a_pixel=3 * _BF16 + _RGB + 3 * _BF16,
        gradient="of the loss",
    ),
    Case(
        "l1_lab_loss_ab",
        "loss",
        lambda draw: (_with_grad(draw.planes(2)), draw.rgb()),
        _of("l1_lab_loss"),
        bytes_a_pixel=2 * _BF16 + _RGB + 2 * _BF16,
        gradient="of the loss",
    ),
    # A loss too, but limited by arithmetic, as metrics are: no share of the copy's bandwidth is its target.
    Case(
        "ciede2000_loss",
        "difference",
        lambda draw: (_with_grad(draw.planes(2, 0.3)), draw.planes(2, 0.3)),
        _of("ciede2000_loss"),
        bytes_a_pixel=2 * 3 * _BF16,
        gradient="of the loss",
    ),
    # One logit per pixel, as in a PixelGAN: a PatchGAN has too few to fill a GPU.
    Case(
        "patch_loss",
        "loss",
        lambda draw: (_with_grad(draw.planes(1, 4.0)),),
        _of("patch_loss", True),
        bytes_a_pixel=2 * _BF16,
        gradient="of the loss",
    ),
    Case(
        "discriminator_loss",
        "loss",
        lambda draw: (_with_grad(draw.logits()), _with_grad(draw.logits())),
        _of("discriminator_loss"),
        bytes_a_pixel=0,
        bytes_a_logit=2 * 2 * _BF16,
        gradient="of the loss",
    ),
    Case(
        "generator_loss",
        "loss",
        lambda draw: (_with_grad(draw.planes(2)), draw.planes(2), _with_grad(draw.logits())),
        _of("generator_loss", 100.0),
        bytes_a_pixel=2 * 3 * _BF16,
        bytes_a_logit=2 * _BF16,
        gradient="of the loss",
    ),
    # Forward one input and one result, backward two and one; a value of the features is a quarter of a pixel's.
    Case(
        "norm_act",
        "layer",
        lambda draw: (*map(_with_grad, (draw.features(), draw.channels(), draw.channels())), draw.features()),
        _of("norm_act", 0.2),
        bytes_a_pixel=(2 + 3) * FEATURES // 16 * _BF16,
        gradient="given",
    ),
    Case(
        "color_metrics", "metric", lambda draw: (draw.rgb(), draw.rgb()), _of("color_metrics"), bytes_a_pixel=2 * _RGB
    ),
)
