"""Every operation in plain PyTorch: the ground truth of tests and benchmarks, and the implementation on CPUs.

Computed in float32, or in float64 for float64 inputs or results. Floating results are differentiable any number of
times, by PyTorch's own formulas. Arguments are not checked here, but in the public functions.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from recolor_kernels.constants import (
    A_FACTOR,
    AB_SCALE,
    B_FACTOR,
    L_SCALE,
    LAB_F_KNEE,
    LAB_KNEE,
    LAB_OFFSET,
    LAB_SLOPE,
    LIGHTNESS_FACTOR,
    LIGHTNESS_OFFSET,
    LUMA_REC601,
    RGB_FROM_XYZ,
    RGB_SCALE,
    ROOT_EPSILON,
    SRGB_ENCODED_KNEE,
    SRGB_GAMMA,
    SRGB_LINEAR_KNEE,
    SRGB_OFFSET,
    SRGB_SCALE,
    SRGB_SLOPE,
    WHITE_D65,
    XYZ_FROM_RGB,
)

Criterion = Literal["bce", "l1", "mse"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
DEFAULT_CRITERION: Criterion = "bce"

# ---- conversions ----


def rgb_to_lab(
    rgb_u8_NHWC: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """sRGB images, uint8 (N,H,W,3), to L (N,1,H,W) = L*/50 - 1 and ab (N,2,H,W) = (a*, b*)/110, both about [-1, 1].

    CIE L*a*b*, D65, 2 degree observer, of sRGB (IEC 61966-2-1), with scikit-image's constants.
    """
    lightness, a, b = _lab(rgb_u8_NHWC, working(dtype))
    condition, target = (lightness / L_SCALE - 1).unsqueeze(1), torch.stack((a, b), dim=1) / AB_SCALE
    return _as(condition, dtype, memory_format), _as(target, dtype, memory_format)


def rgb_to_gray(
    rgb_u8_NHWC: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """sRGB images, uint8 (N,H,W,3), to gray (N,1,H,W), Rec. 601 luma, and RGB (N,3,H,W), both in [-1, 1]."""
    rgb = rgb_u8_NHWC.to(working(dtype)).permute(0, 3, 1, 2) / RGB_SCALE - 1
    (gray,) = _mix((LUMA_REC601,), rgb.unbind(1))
    return _as(gray.unsqueeze(1), dtype, memory_format), _as(rgb, dtype, memory_format)


def lab_to_rgb(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    """L (N,1,H,W) and ab (N,2,H,W), in the ranges of rgb_to_lab, to RGB (N,3,H,W) in [-1, 1], clamped to the gamut."""
    encoded = [_srgb_encode(value) for value in _linear_rgb(*_lab_to_f(l_N1HW, ab_N2HW))]
    rgb = torch.stack(encoded, dim=1)
    clamped = torch.where(
        rgb < 0, 0, torch.where(rgb > 1, 1, rgb)
    )  # versions of torch.clamp differ in the slope at the edge
    return (clamped * 2 - 1).to(l_N1HW.dtype)


def lab_to_rgb_backward(l_N1HW: Tensor, ab_N2HW: Tensor, d_rgb_N3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of L (N,1,H,W) and ab (N,2,H,W) in lab_to_rgb, from that of its result (N,3,H,W).

    Zero outside the gamut; at its edge the gradient passes.
    """
    fx, fy, fz = _lab_to_f(l_N1HW, ab_N2HW)
    d_linear = []
    for linear, d_value in zip(_linear_rgb(fx, fy, fz), d_rgb_N3HW.unbind(1), strict=True):
        encoded = _srgb_encode(linear)
        inside = (encoded >= 0) & (encoded <= 1)
        slope = torch.where(
            linear > SRGB_LINEAR_KNEE,
            (SRGB_SCALE / SRGB_GAMMA) * linear.clamp_min(1e-9) ** (1 / SRGB_GAMMA - 1),
            SRGB_SLOPE,
        )
        d_linear.append(torch.where(inside, 2 * slope * d_value, 0))
    d_xyz = _mix(list(zip(*RGB_FROM_XYZ, strict=True)), d_linear)
    d_f = [
        d_value * white * torch.where(f > LAB_F_KNEE, 3 * f**2, 1 / LAB_SLOPE)
        for d_value, white, f in zip(d_xyz, WHITE_D65, (fx, fy, fz), strict=True)
    ]
    d_fx, d_fy, d_fz = d_f[0], d_f[1], torch.where(fz < 0, 0, d_f[2])
    d_lightness = (d_fx + d_fy + d_fz) * (L_SCALE / LIGHTNESS_FACTOR)
    d_ab = torch.stack((d_fx / A_FACTOR, -d_fz / B_FACTOR), dim=1) * AB_SCALE
    return d_lightness.unsqueeze(1).to(l_N1HW.dtype), d_ab.to(ab_N2HW.dtype)


def lab_to_rgb_u8(l_N1HW: Tensor, ab_N2HW: Tensor) -> Tensor:
    """L (N,1,H,W) and ab (N,2,H,W), in the ranges of rgb_to_lab, to images, uint8 (N,H,W,3), clamped to the gamut."""
    encoded = [_srgb_encode(value).clamp(0, 1) * 255 for value in _linear_rgb(*_lab_to_f(l_N1HW, ab_N2HW))]
    return torch.stack([value.round().to(torch.uint8) for value in encoded], dim=-1)


def rgb_float_to_u8(rgb_N3HW: Tensor) -> Tensor:
    """RGB in [-1, 1] (N,3,H,W) to images, uint8 (N,H,W,3), clamped. Raises ValueError for another shape."""
    if rgb_N3HW.ndim != 4 or rgb_N3HW.shape[1] != 3:
        raise ValueError(f"expected RGB (N,3,H,W), got {tuple(rgb_N3HW.shape)}")
    return ((rgb_N3HW.float() + 1) * RGB_SCALE).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ---- batches ----


def gather(images_u8_NHWC: Tensor, picks: Tensor) -> Tensor:
    """Images uint8 (N,H,W,3) out of all, uint8 (M,H,W,3); picks: int64 (N,3), a number and two flips each, left to
    right and top to bottom."""
    _, height, width, _ = images_u8_NHWC.shape
    number, mirrored, upside_down = picks.unbind(1)
    rows = _reversed_if(upside_down, height)
    columns = _reversed_if(mirrored, width)
    return images_u8_NHWC[number[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reversed_if(flips: Tensor, count: int) -> Tensor:
    """0 to count - 1 for each flip (N,count), backward where it is not 0."""
    forward = torch.arange(count, device=flips.device)
    return torch.where(flips[:, None] != 0, count - 1 - forward, forward)


# ---- losses ----


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference: 0-dimensional; NaN for empty tensors.

    prediction, target: equal shapes, any floating types.
    """
    dtype = working(torch.promote_types(prediction.dtype, target.dtype))
    return F.l1_loss(prediction.to(dtype), target.to(dtype))


def l1_lab_loss(prediction: Tensor, rgb_u8_NHWC: Tensor) -> Tensor:
    """Mean absolute difference of a prediction from the Lab values of images, in units of the networks' ranges.

    prediction: ab (N,2,H,W), or L and ab (N,3,H,W), in the ranges of rgb_to_lab. rgb_u8_NHWC: uint8 (N,H,W,3).
    """
    return l1_loss(prediction, lab_target(prediction, rgb_u8_NHWC))


def lab_target(prediction: Tensor, rgb_u8_NHWC: Tensor) -> Tensor:
    """The target of a prediction of ab (N,2,H,W), or of L and ab (N,3,H,W): the same channels of the images."""
    lightness, ab = rgb_to_lab(rgb_u8_NHWC, working(prediction.dtype))
    return ab if prediction.shape[1] == 2 else torch.cat((lightness, ab), dim=1)


def ciede2000_loss(prediction_N2HW: Tensor, target_N2HW: Tensor) -> Tensor:
    """Mean chroma_difference of a prediction and its target, divided by AB_SCALE: 0-dimensional; NaN for no pixels."""
    return chroma_difference(prediction_N2HW, target_N2HW).mean() / AB_SCALE


def patch_loss(logits: Tensor, real: bool, criterion: Criterion = DEFAULT_CRITERION) -> Tensor:
    """Mean loss of a patch discriminator's logits, of any shape, against the label 1 (real) or 0 (fake).

    bce: cross-entropy with logits [nats] (pix2pix, arXiv:1611.07004); l1: mean |sigmoid(x) - label|, in [0, 1];
    mse: mean (x - label)^2 (least squares GAN, arXiv:1611.04076). 0-dimensional; NaN for empty tensors.
    """
    logits, label = logits.to(working(logits.dtype)), float(real)
    if criterion == "bce":
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
    if criterion == "l1":
        return (logits.sigmoid() - label).abs().mean()
    return ((logits - label) ** 2).mean()


def patch_derivative(logits: Tensor, real: bool, criterion: Criterion) -> Tensor:
    """The derivative of each logit's own loss, in float32 or float64: of patch_loss times the number of logits."""
    logits, label = logits.to(working(logits.dtype)), float(real)
    probability = logits.sigmoid()
    if criterion == "bce":
        return probability - label
    if criterion == "l1":
        return probability * (1 - probability) * (1 - 2 * label)
    return 2 * (logits - label)


def discriminator_loss(on_real: Tensor, on_fake: Tensor, criterion: Criterion = DEFAULT_CRITERION) -> Tensor:
    """Half the patch_loss of logits on real pairs plus half that of logits on generated ones; shapes may differ.

    The half slows the discriminator down relative to the generator (pix2pix, arXiv:1611.07004, section 3.3).
    """
    return 0.5 * (patch_loss(on_real, True, criterion) + patch_loss(on_fake, False, criterion))


def generator_loss(
    prediction: Tensor, target: Tensor, logits: Tensor, l1_weight: float, criterion: Criterion = DEFAULT_CRITERION
) -> tuple[Tensor, Tensor, Tensor]:
    """(l1_weight x L1 + adversarial, L1, adversarial), each 0-dimensional; only the first carries a gradient.

    prediction, target: equal shapes, as in l1_loss. logits: the discriminator's on the prediction, of any shape, as in
    patch_loss with label real. l1_weight: 0 or more (100 in pix2pix, arXiv:1611.07004).
    """
    l1, adversarial = l1_loss(prediction, target), patch_loss(logits, True, criterion)
    return l1_weight * l1 + adversarial, l1.detach(), adversarial.detach()


# ---- color differences ----


def chroma_difference(one_N2HW: Tensor, other_N2HW: Tensor) -> Tensor:
    """CIEDE2000 of two colors of the same L*, (N,H,W) [Delta E 2000], differentiable everywhere.

    one, other: ab in the range of rgb_to_lab. The weights that depend on hue, and the stretch of a*, count as constants
    in the backward pass: their slopes are small, and have no limit at gray. Roots are those of values plus
    ROOT_EPSILON.
    """
    dtype = working(torch.promote_types(one_N2HW.dtype, other_N2HW.dtype))
    (a1, b1), (a2, b2) = ((AB_SCALE * ab.to(dtype)).unbind(1) for ab in (one_N2HW, other_N2HW))
    with torch.no_grad():
        stretch = chroma_stretch(torch.hypot(a1, b1), torch.hypot(a2, b2))
    a1, a2 = stretch * a1, stretch * a2
    chroma1, chroma2 = ((a.square() + b.square() + ROOT_EPSILON).sqrt() for a, b in ((a1, b1), (a2, b2)))
    chroma = (chroma1 + chroma2) / 2
    x1, y1, x2, y2 = a1 / chroma1, b1 / chroma1, a2 / chroma2, b2 / chroma2
    with torch.no_grad():
        hue = torch.rad2deg(torch.atan2(y1 + y2, x1 + x2)) % 360
        weight = hue_weight(hue)
        rotation = hue_rotation(hue, chroma) * torch.sign(a1 * b2 - b1 * a2)
    # 2 (chroma1 chroma2 - a1 a2 - b1 b2), as the chord between both directions: that difference would cancel
    chord = (x2 - x1).square() + (y2 - y1).square() + ROOT_EPSILON * (1 / chroma2 - 1 / chroma1).square()
    by_hue_squared = (2 * ROOT_EPSILON + chroma1 * chroma2 * chord) / (1 + 0.015 * chroma * weight).square()
    by_chroma = (chroma2 - chroma1) / (1 + 0.045 * chroma)
    rotated = rotation * by_chroma * (by_hue_squared + ROOT_EPSILON).sqrt()
    return (by_chroma.square() + by_hue_squared + rotated + ROOT_EPSILON).sqrt()


def ciede2000(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The color difference Delta E 2000 of two (L*, a*, b*), tensors of one shape in Lab units; weights 1.

    Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula", 2005.
    """
    (l1, a1, b1), (l2, a2, b2) = one, other
    stretch = chroma_stretch(torch.hypot(a1, b1), torch.hypot(a2, b2))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for b, a in ((b1, a1), (b2, a2)))
    turn = h2 - h1  # from hue 1 to hue 2, the shorter way around
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn))
    hue = (h1 + turn / 2) % 360
    hue = torch.where(c1 * c2 == 0, h1 + h2, hue)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    d_lightness, d_chroma = l2 - l1, c2 - c1
    d_hue = 2 * (c1 * c2).sqrt() * torch.sin(torch.deg2rad(turn) / 2)
    scale_l = 1 + 0.015 * (lightness - 50) ** 2 / (20 + (lightness - 50) ** 2).sqrt()
    scale_c, scale_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * hue_weight(hue)
    by_l, by_c, by_h = d_lightness / scale_l, d_chroma / scale_c, d_hue / scale_h
    return (by_l**2 + by_c**2 + by_h**2 + hue_rotation(hue, chroma) * by_c * by_h).clamp_min(0).sqrt()


def chroma_stretch(chroma1: Tensor, chroma2: Tensor) -> Tensor:
    """The factor of a* of two colors."""
    return 1.5 - 0.5 * _share_of_vivid((chroma1 + chroma2) / 2)


def hue_weight(hue: Tensor) -> Tensor:
    """T of a mean hue [degrees]."""
    return (
        1
        - 0.17 * torch.cos(torch.deg2rad(hue - 30))
        + 0.24 * torch.cos(torch.deg2rad(2 * hue))
        + 0.32 * torch.cos(torch.deg2rad(3 * hue + 6))
        - 0.20 * torch.cos(torch.deg2rad(4 * hue - 63))
    )


def hue_rotation(hue: Tensor, chroma: Tensor) -> Tensor:
    """R_T of a mean hue in [0, 360) [degrees] and a mean chroma."""
    from_blue = ((hue - 275) / 25).clamp_min(-7.5)  # exp(-56) is 0, but no denormal number, which slows a CPU down
    return -2 * _share_of_vivid(chroma) * torch.sin(torch.deg2rad(60 * torch.exp(-(from_blue**2))))


def _share_of_vivid(chroma: Tensor) -> Tensor:
    """Near 0 for pale colors, near 1 for vivid ones."""
    share = chroma / 25
    power = (share**3) ** 2 * share  # PyTorch takes cubes and squares six times as fast as seventh powers
    return (power / (power + 1)).sqrt()


# ---- metrics ----


def color_metrics(prediction_u8_NHWC: Tensor, target_u8_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of each image: float64 (N,2) and int64 (N,13).

    prediction_u8_NHWC, target_u8_NHWC: sRGB images, uint8 (N,H,W,3). Floats: CIEDE2000, and |difference| of a* plus
    that of b* [Lab units]. Integers: squared differences of R, G and B; then for prediction and target each rg, yb,
    |rg|, |yb|, rg^2, yb^2, where rg = R - G and yb = R + G - 2 B [levels].
    """
    one, other = (_lab(rgb, torch.float64) for rgb in (prediction_u8_NHWC, target_u8_NHWC))
    colors = [ciede2000(one, other), (one[1] - other[1]).abs() + (one[2] - other[2]).abs()]
    levels = [(prediction_u8_NHWC.int() - target_u8_NHWC.int()).square().sum(-1)]
    for rgb in (prediction_u8_NHWC, target_u8_NHWC):
        red, green, blue = rgb.int().unbind(-1)
        rg, yb = red - green, red + green - 2 * blue
        levels += [rg, yb, rg.abs(), yb.abs(), rg.square(), yb.square()]
    return _sums(colors), _sums(levels)


def _sums(columns: Sequence[Tensor]) -> Tensor:
    """Sums over each image, over rows first, so that neither batch size nor number of threads changes a bit."""
    return torch.stack([column.sum(2).sum(1) for column in columns], dim=1)


# ---- features ----


def norm_statistics(
    x_NCHW: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    eps: float,
    instance: bool,
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each channel, of the batch (1,C), or of each image (N,C) if instance.

    Moves running statistics (C,), if there are any, by momentum toward those of the batch, of which the variance is
    then the unbiased one, and counts the batch.
    """
    variance, mean = torch.var_mean(x_NCHW.to(working(x_NCHW.dtype)), (2, 3) if instance else (0, 2, 3), correction=0)
    if running_mean is not None and running_variance is not None and batches is not None:
        values = x_NCHW.numel() // x_NCHW.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_variance.lerp_((variance * (values / (values - 1))).to(running_variance.dtype), momentum)
            batches += 1
    channels = x_NCHW.shape[1]
    return mean.reshape(-1, channels), (variance + eps).rsqrt().reshape(-1, channels)


def norm_act(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    skipped_NSHW: Tensor | None,
    slope: float,
    dropout: float,
) -> Tensor:
    """Features normalized by given statistics, through leaky ReLU and dropout, behind the ReLU of the skipped ones:
    (N,S+C,H,W), channels_last. Arguments as of the function norm_act, and of norm_statistics."""
    value = F.leaky_relu(_scaled(_normalized(x_NCHW, mean, rstd), weight, bias), slope)
    if dropout:
        assert seed is not None
        value = torch.where(dropout_mask(seed, x_NCHW.shape, dropout), value / (1 - dropout), 0)
    if skipped_NSHW is not None:
        value = torch.cat((torch.relu(skipped_NSHW.to(value.dtype)), value), dim=1)
    return _as(value, x_NCHW.dtype, torch.channels_last)


def norm_act_backward(
    d_y: Tensor,
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    skipped_NSHW: Tensor | None,
    slope: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and skipped features in norm_act, from that of its result (N,S+C,H,W); that of x
    through its statistics, too. Without skipped features the last is empty."""
    normalized = _normalized(x_NCHW, mean, rstd)
    channels = x_NCHW.shape[1]
    gradient = d_y[:, -channels:].to(normalized.dtype)
    if dropout:
        assert seed is not None
        gradient = torch.where(dropout_mask(seed, x_NCHW.shape, dropout), gradient / (1 - dropout), 0)
    gradient = torch.where(_scaled(normalized, weight, bias) > 0, gradient, gradient * slope)
    over = (0, 2, 3) if len(mean) == 1 else (2, 3)
    by_mean, by_rstd = (part.mean(over, keepdim=True) for part in (gradient, gradient * normalized))
    d_x = _a_channel(weight * rstd) * (gradient - by_mean - normalized * by_rstd)
    d_skipped = x_NCHW.new_empty(0)
    if skipped_NSHW is not None:
        d_skipped = _as(torch.where(skipped_NSHW > 0, d_y[:, :-channels], 0), x_NCHW.dtype, torch.channels_last)
    d_weight, d_bias = (part.sum((0, 2, 3)) for part in (gradient * normalized, gradient))
    d_x = _as(d_x, x_NCHW.dtype, torch.channels_last)
    return d_x, d_weight.to(weight.dtype), d_bias.to(bias.dtype), d_skipped


def dropout_mask(seed: Tensor, shape_NCHW: Sequence[int], dropout: float) -> Tensor:
    """Which values dropout keeps, bool (N,C,H,W). seed: int64 ()."""
    n, channels, height, width = shape_NCHW
    row = torch.arange(n * height * width, device=seed.device).view(n, 1, height, width)
    channel = torch.arange(channels, device=seed.device).view(1, channels, 1, 1)
    return (philox(seed, channel, row) >> 8) >= dropout_threshold(dropout)


def dropout_threshold(dropout: float) -> int:
    """Below it, of 24 random bits, a value is dropped."""
    return round(dropout * 2**24)


def philox(seed: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """The first 32 of the 128 random bits of Philox 4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405).

    one, two: int64, below 2^32, of the counter (one, two, 0, 0). seed: int64 (), the key. Returns int64.
    """
    low = 0xFFFFFFFF
    three = four = torch.zeros_like(one)
    key, other_key = seed & low, (seed >> 32) & low
    for _ in range(10):
        product, other_product = one * 0xD2511F53, three * 0xCD9E8D57
        one, three = ((other_product >> 32) & low) ^ two ^ key, ((product >> 32) & low) ^ four ^ other_key
        two, four = other_product & low, product & low
        key, other_key = (key + 0x9E3779B9) & low, (other_key + 0xBB67AE85) & low
    return one


def _normalized(x_NCHW: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x_NCHW.to(mean.dtype) - _a_channel(mean)) * _a_channel(rstd)


def _scaled(normalized_NCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normalized_NCHW * _a_channel(weight) + _a_channel(bias)


def _a_channel(values: Tensor) -> Tensor:
    """Values (C,) or (N,C), to be combined with (N,C,H,W)."""
    return values[..., None, None]


# ---- shared steps ----


def working(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of a type are computed: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _as(values: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    return values.to(dtype).contiguous(memory_format=memory_format)


def _mix(matrix: Sequence[Sequence[float]], channels: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """A 3-column matrix times three channels. Written out: how matmul rounds depends on batch size and strides."""
    one, two, three = channels
    return [row[0] * one + row[1] * two + row[2] * three for row in matrix]


def _lab(rgb_u8_NHWC: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(L*, a*, b*), each (N,H,W)."""
    planes = rgb_u8_NHWC.permute(3, 0, 1, 2)  # planes are twice as fast as interleaved channels
    linear = _srgb_decode_table(dtype, planes.device).index_select(0, planes.reshape(-1).int()).view(planes.shape)
    xyz = _mix(XYZ_FROM_RGB, linear)
    fx, fy, fz = (_lab_f(value / white) for value, white in zip(xyz, WHITE_D65, strict=True))
    return LIGHTNESS_FACTOR * fy - LIGHTNESS_OFFSET, A_FACTOR * (fx - fy), B_FACTOR * (fy - fz)


def _lab_to_f(l_N1HW: Tensor, ab_N2HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f of X, Y, Z, each (N,H,W); _linear_rgb takes an f of Z below 0 for 0."""
    dtype = working(l_N1HW.dtype)
    fy = ((l_N1HW[:, 0].to(dtype) + 1) * L_SCALE + LIGHTNESS_OFFSET) / LIGHTNESS_FACTOR
    a, b = (ab_N2HW.to(dtype) * AB_SCALE).unbind(1)
    return fy + a / A_FACTOR, fy, fy - b / B_FACTOR


def _linear_rgb(fx: Tensor, fy: Tensor, fz: Tensor) -> list[Tensor]:
    f = fx, fy, torch.where(fz < 0, 0, fz)
    return _mix(RGB_FROM_XYZ, [_lab_f_inverse(value) * white for value, white in zip(f, WHITE_D65, strict=True)])


@lru_cache
def _srgb_decode_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 256 linear values of 8-bit sRGB (IEC 61966-2-1)."""
    value = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(
        value > SRGB_ENCODED_KNEE, ((value + SRGB_OFFSET) / SRGB_SCALE) ** SRGB_GAMMA, value / SRGB_SLOPE
    )
    return linear.to(device=device, dtype=dtype)


def _srgb_encode(linear: Tensor) -> Tensor:
    return torch.where(
        linear > SRGB_LINEAR_KNEE,
        SRGB_SCALE * linear.clamp_min(1e-9) ** (1 / SRGB_GAMMA) - SRGB_OFFSET,
        SRGB_SLOPE * linear,
    )


def _lab_f(t: Tensor) -> Tensor:
    return torch.where(t > LAB_KNEE, t.clamp_min(1e-9) ** (1 / 3), LAB_SLOPE * t + LAB_OFFSET)


def _lab_f_inverse(f: Tensor) -> Tensor:
    return torch.where(f > LAB_F_KNEE, f**3, (f - LAB_OFFSET) / LAB_SLOPE)
