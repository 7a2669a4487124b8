"""Every operation in plain PyTorch: the truth for tests and benchmarks, and the path on CPUs.

Constants are those of scikit-image's `skimage.color` (sRGB, IEC 61966-2-1; CIE L*a*b*, D65, 2 degree observer), which
differ from the exact CIE ones by up to 0.005 in a* and b*.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recolor_kernels.launch import check_lab, check_rgb_u8

Criterion = Literal["bce", "l1", "mse"]

L_SCALE = 50.0  # L = L* / 50 - 1
AB_SCALE = 110.0  # ab = (a*, b*) / 110

_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_RGB_FROM_XYZ = torch.linalg.inv(torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64)).tolist()
_WHITE_D65 = (0.95047, 1.0, 1.08883)
_LUMA_REC601 = (0.299, 0.587, 0.114)


def rgb_to_lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """sRGB pictures to L (N,1,H,W) = L*/50 - 1 and ab (N,2,H,W) = ab/110.

    rgb_u8_NHWC: uint8, (N,H,W,3). dtype: floating type of the results; the conversion itself is in float32, or in
    float64 if that is asked for. Raises ValueError for another shape or type. Not differentiable (integers come in).
    """
    check_rgb_u8(rgb_u8_NHWC)
    working = torch.promote_types(dtype, torch.float32)
    linear = _srgb_decode_table(working, rgb_u8_NHWC.device)[rgb_u8_NHWC.int()]
    xyz = _mix(_XYZ_FROM_RGB, linear.unbind(-1))
    fx, fy, fz = (_lab_f(value / white) for value, white in zip(xyz, _WHITE_D65, strict=True))
    lightness = (116 * fy - 16) / L_SCALE - 1
    ab = torch.stack((500 * (fx - fy), 200 * (fy - fz)), dim=1) / AB_SCALE
    return lightness.unsqueeze(1).to(dtype), ab.to(dtype)


def lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    """L = L*/50 - 1 (N,1,H,W) and ab = ab/110 (N,2,H,W) to sRGB pictures, uint8 (N,H,W,3), clamped to the gamut.

    Raises ValueError for other shapes. Not differentiable (integers come out).
    """
    check_lab(l_N1HW, ab_N2HW)
    working = torch.promote_types(l_N1HW.dtype, torch.float32)
    lightness = (l_N1HW[:, 0].to(working) + 1) * L_SCALE
    a, b = (ab_N2HW.to(working) * AB_SCALE).unbind(1)
    fy = (lightness + 16) / 116
    f = (fy + a / 500, fy, (fy - b / 200).clamp_min(0))
    xyz = [_lab_f_inverse(value) * white for value, white in zip(f, _WHITE_D65, strict=True)]
    return torch.stack([_srgb_encode_u8(value) for value in _mix(_RGB_FROM_XYZ, xyz)], dim=-1)


def rgb_to_gray(rgb_u8_NHWC: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """sRGB pictures to gray (N,1,H,W), Rec. 601 luma, and RGB (N,3,H,W), both v/127.5 - 1 in [-1, 1].

    rgb_u8_NHWC: uint8, (N,H,W,3). Raises ValueError for another shape or type. Not differentiable (integers come in).
    """
    check_rgb_u8(rgb_u8_NHWC)
    rgb = rgb_u8_NHWC.to(torch.promote_types(dtype, torch.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    (gray,) = _mix((_LUMA_REC601,), rgb.unbind(1))
    return gray.unsqueeze(1).to(dtype), rgb.contiguous().to(dtype)


def rgb_float_to_u8(rgb_N3HW: Tensor) -> Tensor:
    """RGB in [-1, 1] (N,3,H,W) to pictures, uint8 (N,H,W,3), clamped. Raises ValueError for another shape."""
    if rgb_N3HW.ndim != 4 or rgb_N3HW.shape[1] != 3:
        raise ValueError(f"expected RGB (N,3,H,W), got {tuple(rgb_N3HW.shape)}")
    return ((rgb_N3HW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, a 0-dimensional tensor. Shapes must be equal, or ValueError is raised."""
    if prediction.shape != target.shape:
        raise ValueError(f"expected equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    return F.l1_loss(prediction, target)


def patch_loss(logits: Tensor, real: bool, criterion: Criterion = "bce") -> Tensor:
    """How far a discriminator's logits are from the label 1 (real) or 0 (fake), as a mean over all patches.

    bce: cross-entropy with logits (pix2pix, arXiv:1611.07004); l1: mean |sigmoid(x) - label|; mse: mean (x - label)^2
    (least squares GAN, arXiv:1611.04076). logits: any floating shape. Raises ValueError for another criterion.
    """
    label = float(real)
    if criterion == "bce":
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    if criterion == "l1":
        return (logits.sigmoid() - label).abs().mean()
    if criterion == "mse":
        return ((logits - label) ** 2).mean()
    raise ValueError(f"criterion={criterion!r}: expected 'bce', 'l1' or 'mse'")


@lru_cache
def _srgb_decode_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 256 linear values of 8-bit sRGB (IEC 61966-2-1)."""
    value = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    return linear.to(device=device, dtype=dtype)


def _mix(matrix: Sequence[Sequence[float]], channels: Sequence[Tensor]) -> list[Tensor]:
    """A 3-column matrix times three channels. Written out, since a matrix product rounds by batch size and strides."""
    one, two, three = channels
    return [row[0] * one + row[1] * two + row[2] * three for row in matrix]


def _lab_f(t: Tensor) -> Tensor:
    return torch.where(t > 0.008856, t.clamp_min(1e-9) ** (1 / 3), 7.787 * t + 16 / 116)


def _lab_f_inverse(f: Tensor) -> Tensor:
    return torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)


def _srgb_encode_u8(linear: Tensor) -> Tensor:
    encoded = torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return (encoded.clamp(0, 1) * 255).round().to(torch.uint8)
