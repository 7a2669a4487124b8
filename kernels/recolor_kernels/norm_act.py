"""Normalization, leaky ReLU and dropout in one pass, which can write its result behind skipped features.

Features are channels_last: rows of C channels, one row a pixel. A group is what statistics are taken over: all rows for
batch normalization, those of one image for instance normalization. A program works on tiles of ROWS x CHANNELS, so that
neighboring threads share whole lines of memory. Statistics are exact to float32 (Welford's algorithm, merged as in Chan
et al. 1983, doi:10.1080/00031305.1983.10483115) and, as all sums, added in a fixed order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch, reference
from recolor_kernels.gradients import differentiable, differentiable_once
from recolor_kernels.launch import Impl, check_floating, check_one_device, check_triton_dtype, choose, register
from recolor_kernels.reference import dropout_threshold

TILE_BYTES = 4096  # of features: with more of them in float32, registers spill
MOST_CHANNELS = 64  # of a tile: a line of 128 bytes in 16-bit types
MOST_PARTS = 512  # of a group, which one program merges
PROGRAMS = 1024  # that take statistics: enough for the largest GPUs
MERGED_CHANNELS = 8  # of a program that merges parts

# ---- kernels ----


@triton.jit
def _block_of_channels(block, channels, CHANNELS: tl.constexpr):
    """The first channel of a block, and which of its lanes are channels."""
    first = tl.cast(block, tl.int64) * CHANNELS
    return first, tl.arange(0, CHANNELS) < channels - first


@triton.jit
def _load_tile(ptr, stride, inside, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile as float32, zero where it is not inside. ptr: of its first value; stride: of its rows."""
    offset = tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, CHANNELS)[None, :]
    return tl.load(ptr + offset, mask=inside, other=0).to(tl.float32)


@triton.jit
def _store_tile(ptr, values, stride, inside, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    offset = tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, CHANNELS)[None, :]
    tl.store(ptr + offset, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _load_channels(ptr, is_channel, CHANNELS: tl.constexpr):
    """One value a channel, as a row of float32."""
    return tl.load(ptr + tl.arange(0, CHANNELS), mask=is_channel, other=0).to(tl.float32)[None, :]


@triton.jit
def _merged(mean, squares, count, total):
    """Mean and sum of squared differences from it, a channel, of all lanes along axis 0, which have their own.

    count: of the values of a lane; total: of all.
    """
    merged = tl.sum(mean * count, axis=0) / total
    merged += tl.sum((mean - merged[None, :]) * count, axis=0) / total  # what rounding the sum has left
    difference = mean - merged[None, :]
    return merged, tl.sum(squares + count * difference * difference, axis=0)


@triton.jit
def _part(parts, part_rows, rows, channels, CHANNELS: tl.constexpr):
    """What a program takes sums over: the number of its part, its first row and number of rows, its block of channels.

    Channels vary fastest, then parts of a group, then groups.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) // blocks
    group, inside_group = tl.cast(part // parts, tl.int64), tl.cast(part % parts, tl.int64) * part_rows
    count = tl.minimum(rows - inside_group, part_rows).to(tl.int32)
    return tl.cast(part, tl.int64), group, group * rows + inside_group, count, tl.program_id(0) % blocks


@triton.jit
def _statistics_kernel(
    x_ptr, sums_ptr, rows, channels, parts, part_rows, all_parts, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """The mean of each channel in a part of a group, and the sum of squared differences from it."""
    part, _, first_row, count, block = _part(parts, part_rows, rows, channels, CHANNELS)
    first_channel, is_channel = _block_of_channels(block, channels, CHANNELS)
    x_ptr += first_row * channels + first_channel
    row = tl.arange(0, ROWS)
    mean = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for done in range(0, count, ROWS):
        inside = (row < count - done)[:, None] & is_channel[None, :]
        x = _load_tile(x_ptr + tl.cast(done, tl.int64) * channels, channels, inside, ROWS, CHANNELS)
        step = tl.where(inside, x - mean, 0.0)
        mean += step * (1.0 / (done // ROWS + 1))
        squares += step * (x - mean)
    of_row = ((count - row + ROWS - 1) // ROWS).to(tl.float32)[:, None]
    mean_of_part, squares_of_part = _merged(mean, squares, of_row, count.to(tl.float32))
    sums_ptr += part * channels + first_channel + tl.arange(0, CHANNELS)
    tl.store(sums_ptr, mean_of_part, mask=is_channel)
    tl.store(sums_ptr + tl.cast(all_parts, tl.int64) * channels, squares_of_part, mask=is_channel)


@triton.jit
def _merge_statistics_kernel(
    sums_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_variance_ptr, batches_ptr, rows, channels, parts, part_rows,
    all_parts, eps, momentum, TRACKED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Statistics of a group from those of its parts; with TRACKED, of which there is one group, running ones too."""
    blocks = tl.cdiv(channels, CHANNELS)
    group = tl.cast(tl.program_id(0) // blocks, tl.int64)
    first_channel, is_channel = _block_of_channels(tl.program_id(0) % blocks, channels, CHANNELS)
    part = tl.arange(0, PARTS)
    inside = (part < parts)[:, None] & is_channel[None, :]
    sums_ptr += group * parts * channels + first_channel
    means = _load_tile(sums_ptr, channels, inside, PARTS, CHANNELS)
    squares = _load_tile(sums_ptr + tl.cast(all_parts, tl.int64) * channels, channels, inside, PARTS, CHANNELS)
    of_part = tl.minimum(tl.maximum(rows - part.to(tl.int64) * part_rows, 0), part_rows).to(tl.float32)[:, None]
    mean, all_squares = _merged(means, squares, of_part, rows.to(tl.float32))
    place = first_channel + tl.arange(0, CHANNELS)
    tl.store(mean_ptr + group * channels + place, mean, mask=is_channel)
    tl.store(rstd_ptr + group * channels + place, 1.0 / tl.sqrt(all_squares / rows + eps), mask=is_channel)
    if TRACKED:
        running_mean = tl.load(running_mean_ptr + place, mask=is_channel, other=0)
        running_variance = tl.load(running_variance_ptr + place, mask=is_channel, other=0)
        variance = all_squares / (rows - 1)
        tl.store(running_mean_ptr + place, running_mean + momentum * (mean - running_mean), mask=is_channel)
        tl.store(
            running_variance_ptr + place, running_variance + momentum * (variance - running_variance), mask=is_channel
        )
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@triton.jit
def _is_kept(seed_ptr, first_row, first_channel, threshold, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Which values of a tile dropout keeps: Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405) of (channel, row),
    so that the backward pass draws them again."""
    zero = tl.zeros((ROWS, CHANNELS), tl.int32)
    row = zero + (first_row.to(tl.int32) + tl.arange(0, ROWS))[:, None]
    channel = zero + (first_channel.to(tl.int32) + tl.arange(0, CHANNELS))[None, :]
    bits, _, _, _ = tl.philox(tl.load(seed_ptr), channel, row, zero, zero)
    return (bits >> 8).to(tl.int32) >= threshold


@triton.jit
def _tile(rows, tiles, channels, skipped_channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A program's group, first row, which of its rows exist, block of channels, and number of blocks of skipped ones.

    Channels vary fastest, the skipped ones first, then tiles of a group, then groups.
    """
    skipped_blocks = tl.cdiv(skipped_channels, CHANNELS)
    blocks = skipped_blocks + tl.cdiv(channels, CHANNELS)
    tile = tl.program_id(0) // blocks
    group, inside_group = tl.cast(tile // tiles, tl.int64), tl.cast(tile % tiles, tl.int64) * ROWS
    is_row = tl.arange(0, ROWS) < rows - inside_group
    return group, group * rows + inside_group, is_row, tl.program_id(0) % blocks, skipped_blocks


@triton.jit
def _norm_act_kernel(
    x_ptr, skipped_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, seed_ptr, y_ptr, rows, tiles, channels,
    skipped_channels, slope, threshold, scale, DROPOUT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of the result. The programs of the skipped channels write their ReLU, the others what is normalized."""
    group, first_row, is_row, block, skipped_blocks = _tile(rows, tiles, channels, skipped_channels, ROWS, CHANNELS)
    stride = skipped_channels + channels
    y_ptr += first_row * stride
    if block < skipped_blocks:
        first_channel, is_channel = _block_of_channels(block, skipped_channels, CHANNELS)
        inside = is_row[:, None] & is_channel[None, :]
        place = first_row * skipped_channels + first_channel
        skipped = _load_tile(skipped_ptr + place, skipped_channels, inside, ROWS, CHANNELS)
        result = tl.where(skipped < 0, 0.0, skipped)  # a NaN stays one
        _store_tile(y_ptr + first_channel, result, stride, inside, ROWS, CHANNELS)
    else:
        first_channel, is_channel = _block_of_channels(block - skipped_blocks, channels, CHANNELS)
        inside = is_row[:, None] & is_channel[None, :]
        x = _load_tile(x_ptr + first_row * channels + first_channel, channels, inside, ROWS, CHANNELS)
        mean = _load_channels(mean_ptr + group * channels + first_channel, is_channel, CHANNELS)
        rstd = _load_channels(rstd_ptr + group * channels + first_channel, is_channel, CHANNELS)
        weight = _load_channels(weight_ptr + first_channel, is_channel, CHANNELS)
        value = (x - mean) * rstd * weight + _load_channels(bias_ptr + first_channel, is_channel, CHANNELS)
        result = tl.where(value > 0, value, value * slope)
        if DROPOUT:
            kept = _is_kept(seed_ptr, first_row, first_channel, threshold, ROWS, CHANNELS)
            result = tl.where(kept, result * scale, 0.0)
        _store_tile(y_ptr + skipped_channels + first_channel, result, stride, inside, ROWS, CHANNELS)


@triton.jit
def _derivative(
    x_ptr, d_y_ptr, mean, rstd, weight, bias, seed_ptr, first_row, first_channel, channels, stride, slope, threshold,
    scale, inside, DROPOUT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of a tile: the gradient of what the activation is given, and x normalized. Pointers: to the tile."""
    gradient = _load_tile(d_y_ptr, stride, inside, ROWS, CHANNELS)
    normalized = (_load_tile(x_ptr, channels, inside, ROWS, CHANNELS) - mean) * rstd
    if DROPOUT:
        kept = _is_kept(seed_ptr, first_row, first_channel, threshold, ROWS, CHANNELS)
        gradient = tl.where(kept, gradient * scale, 0.0)
    return tl.where(normalized * weight + bias > 0, gradient, gradient * slope), normalized


@triton.jit
def _gradient_sums_kernel(
    x_ptr, d_y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, seed_ptr, sums_ptr, rows, channels, skipped_channels,
    parts, part_rows, all_parts, slope, threshold, scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias by a part of a group."""
    part, group, first_row, count, block = _part(parts, part_rows, rows, channels, CHANNELS)
    first_channel, is_channel = _block_of_channels(block, channels, CHANNELS)
    mean = _load_channels(mean_ptr + group * channels + first_channel, is_channel, CHANNELS)
    rstd = _load_channels(rstd_ptr + group * channels + first_channel, is_channel, CHANNELS)
    weight = _load_channels(weight_ptr + first_channel, is_channel, CHANNELS)
    bias = _load_channels(bias_ptr + first_channel, is_channel, CHANNELS)
    stride = skipped_channels + channels
    d_weight = tl.zeros((ROWS, CHANNELS), tl.float32)
    d_bias = tl.zeros((ROWS, CHANNELS), tl.float32)
    for done in range(0, count, ROWS):
        row = first_row + done
        gradient, normalized = _derivative(
            x_ptr + row * channels + first_channel, d_y_ptr + row * stride + skipped_channels + first_channel,
            mean, rstd, weight, bias, seed_ptr, row, first_channel, channels, stride, slope, threshold, scale,
            (tl.arange(0, ROWS) < count - done)[:, None] & is_channel[None, :], DROPOUT, ROWS, CHANNELS,
        )  # fmt: skip
        d_weight += gradient * normalized
        d_bias += gradient
    sums_ptr += part * channels + first_channel + tl.arange(0, CHANNELS)
    tl.store(sums_ptr, tl.sum(d_weight, axis=0), mask=is_channel)
    tl.store(sums_ptr + tl.cast(all_parts, tl.int64) * channels, tl.sum(d_bias, axis=0), mask=is_channel)


@triton.jit
def _merge_gradients_kernel(
    sums_ptr, d_weight_ptr, d_bias_ptr, channels, parts, all_parts, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):
    """The gradients of weight and bias by a group, from those by its parts."""
    blocks = tl.cdiv(channels, CHANNELS)
    group = tl.cast(tl.program_id(0) // blocks, tl.int64)
    first_channel, is_channel = _block_of_channels(tl.program_id(0) % blocks, channels, CHANNELS)
    inside = (tl.arange(0, PARTS) < parts)[:, None] & is_channel[None, :]
    sums_ptr += group * parts * channels + first_channel
    d_weights = _load_tile(sums_ptr, channels, inside, PARTS, CHANNELS)
    d_biases = _load_tile(sums_ptr + tl.cast(all_parts, tl.int64) * channels, channels, inside, PARTS, CHANNELS)
    place = group * channels + first_channel + tl.arange(0, CHANNELS)
    tl.store(d_weight_ptr + place, tl.sum(d_weights, axis=0), mask=is_channel)
    tl.store(d_bias_ptr + place, tl.sum(d_biases, axis=0), mask=is_channel)


@triton.jit
def _norm_act_backward_kernel(
    x_ptr, skipped_ptr, d_y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, seed_ptr, d_weight_ptr, d_bias_ptr, d_x_ptr,
    d_skipped_ptr, rows, tiles, channels, skipped_channels, slope, threshold, scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of the gradients of x and of the skipped features. d_weight, d_bias: those by the tile's group."""
    group, first_row, is_row, block, skipped_blocks = _tile(rows, tiles, channels, skipped_channels, ROWS, CHANNELS)
    stride = skipped_channels + channels
    d_y_ptr += first_row * stride
    if block < skipped_blocks:
        first_channel, is_channel = _block_of_channels(block, skipped_channels, CHANNELS)
        inside = is_row[:, None] & is_channel[None, :]
        place = first_row * skipped_channels + first_channel
        skipped = _load_tile(skipped_ptr + place, skipped_channels, inside, ROWS, CHANNELS)
        d_skipped = _load_tile(d_y_ptr + first_channel, stride, inside, ROWS, CHANNELS)
        d_skipped = tl.where(skipped > 0, d_skipped, 0.0)
        _store_tile(d_skipped_ptr + place, d_skipped, skipped_channels, inside, ROWS, CHANNELS)
    else:
        first_channel, is_channel = _block_of_channels(block - skipped_blocks, channels, CHANNELS)
        inside = is_row[:, None] & is_channel[None, :]
        place = first_row * channels + first_channel
        rstd = _load_channels(rstd_ptr + group * channels + first_channel, is_channel, CHANNELS)
        weight = _load_channels(weight_ptr + first_channel, is_channel, CHANNELS)
        gradient, normalized = _derivative(
            x_ptr + place, d_y_ptr + skipped_channels + first_channel,
            _load_channels(mean_ptr + group * channels + first_channel, is_channel, CHANNELS), rstd, weight,
            _load_channels(bias_ptr + first_channel, is_channel, CHANNELS), seed_ptr, first_row, first_channel,
            channels, stride, slope, threshold, scale, inside, DROPOUT, ROWS, CHANNELS,
        )  # fmt: skip
        d_weight = _load_channels(d_weight_ptr + group * channels + first_channel, is_channel, CHANNELS)
        d_bias = _load_channels(d_bias_ptr + group * channels + first_channel, is_channel, CHANNELS)
        d_x = weight * rstd * (gradient - (d_bias + normalized * d_weight) / rows)
        _store_tile(d_x_ptr + place, d_x, channels, inside, ROWS, CHANNELS)


# ---- launchers ----


class _Split(NamedTuple):
    """How features are split: groups of rows for statistics, tiles for programs, and parts of a group for sums."""

    groups: int
    rows: int  # of a group
    channels: int
    parts: int  # of a group
    part_rows: int  # a multiple of the rows of a tile
    tile: dict[str, int]

    @classmethod
    def of(cls, x_NCHW: Tensor, groups: int) -> "_Split":
        n, channels, height, width = x_NCHW.shape
        rows = n * height * width // groups
        tile_channels = min(MOST_CHANNELS, max(16, triton.next_power_of_2(channels)))
        tile_rows = TILE_BYTES // x_NCHW.element_size() // tile_channels
        most_parts = PROGRAMS // (groups * triton.cdiv(channels, tile_channels))
        part_rows = triton.cdiv(triton.cdiv(rows, tile_rows), min(MOST_PARTS, max(1, most_parts))) * tile_rows
        tile = {"ROWS": tile_rows, "CHANNELS": tile_channels}
        return cls(groups, rows, channels, triton.cdiv(rows, part_rows), part_rows, tile)

    @property
    def blocks(self) -> int:
        """Of channels."""
        return int(triton.cdiv(self.channels, self.tile["CHANNELS"]))

    def launch_over_parts(self, kernel: Any, **arguments: Any) -> None:
        """Launch a kernel that writes two sums a channel of each part."""
        launch.launch(
            kernel, self.groups * self.parts * self.blocks, **arguments, rows=self.rows, channels=self.channels,
            parts=self.parts, part_rows=self.part_rows, all_parts=self.groups * self.parts, **self.tile,
        )  # fmt: skip

    def launch_merging(self, kernel: Any, **arguments: Any) -> None:
        """Launch a kernel that merges these sums, a group."""
        launch.launch(
            kernel, self.groups * triton.cdiv(self.channels, MERGED_CHANNELS), **arguments, channels=self.channels,
            parts=self.parts, all_parts=self.groups * self.parts, PARTS=MOST_PARTS, CHANNELS=MERGED_CHANNELS,
        )  # fmt: skip

    def launch_over_tiles(self, kernel: Any, skipped_NSHW: Tensor | None, **arguments: Any) -> None:
        """Launch a kernel of tiles, the skipped ones too."""
        skipped_channels = _channels(skipped_NSHW)
        tiles = triton.cdiv(self.rows, self.tile["ROWS"])
        blocks = self.blocks + triton.cdiv(skipped_channels, self.tile["CHANNELS"])
        launch.launch(
            kernel, self.groups * tiles * blocks, **arguments, rows=self.rows, tiles=tiles, channels=self.channels,
            skipped_channels=skipped_channels, **self.tile,
        )  # fmt: skip

    def sums(self, like: Tensor) -> Tensor:
        """Memory for two sums a channel of each part."""
        return like.new_empty((2, self.groups * self.parts, self.channels), dtype=torch.float32)


def _channels(skipped_NSHW: Tensor | None) -> int:
    return 0 if skipped_NSHW is None else skipped_NSHW.shape[1]


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _launch_statistics(
    x_NCHW: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    eps: float,
    instance: bool,
) -> tuple[Tensor, Tensor]:
    check_triton_dtype(x_NCHW.dtype)
    mean, rstd = _empty_statistics(x_NCHW, instance)
    split = _Split.of(x_NCHW, len(mean))
    sums = split.sums(x_NCHW)
    split.launch_over_parts(_statistics_kernel, x_ptr=_last(x_NCHW), sums_ptr=sums)
    split.launch_merging(
        _merge_statistics_kernel, sums_ptr=sums, mean_ptr=mean, rstd_ptr=rstd, running_mean_ptr=running_mean,
        running_variance_ptr=running_variance, batches_ptr=batches, rows=split.rows, part_rows=split.part_rows, eps=eps,
        momentum=momentum, TRACKED=running_mean is not None,
    )  # fmt: skip
    return mean, rstd


def _empty_statistics(x_NCHW: Tensor, instance: bool) -> tuple[Tensor, Tensor]:
    shape = (len(x_NCHW) if instance else 1, x_NCHW.shape[1])
    dtype = reference.working(x_NCHW.dtype)
    return x_NCHW.new_empty(shape, dtype=dtype), x_NCHW.new_empty(shape, dtype=dtype)


def _dropout_arguments(seed: Tensor | None, mean: Tensor, dropout: float) -> dict[str, Any]:
    return {
        "seed_ptr": mean if seed is None else seed,
        "threshold": dropout_threshold(dropout),
        "scale": 1 / (1 - dropout),
        "DROPOUT": dropout > 0,
    }


def _launch_norm_act(
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
    x, skipped = _last(x_NCHW), None if skipped_NSHW is None else _last(skipped_NSHW)
    y = _empty_result(x, skipped)
    _Split.of(x, len(mean)).launch_over_tiles(
        _norm_act_kernel, skipped, x_ptr=x, skipped_ptr=x if skipped is None else skipped, weight_ptr=weight,
        bias_ptr=bias, mean_ptr=mean, rstd_ptr=rstd, y_ptr=y, slope=slope, **_dropout_arguments(seed, mean, dropout),
    )  # fmt: skip
    return y


def _empty_result(x_NCHW: Tensor, skipped_NSHW: Tensor | None) -> Tensor:
    n, channels, height, width = x_NCHW.shape
    return _empty_last(x_NCHW, (n, _channels(skipped_NSHW) + channels, height, width))


def _empty_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _launch_backward(
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
    d_y, x, skipped = _last(d_y), _last(x_NCHW), None if skipped_NSHW is None else _last(skipped_NSHW)
    split = _Split.of(x, len(mean))
    common = {
        "x_ptr": x, "d_y_ptr": d_y, "weight_ptr": weight, "bias_ptr": bias, "mean_ptr": mean, "rstd_ptr": rstd,
        "slope": slope, **_dropout_arguments(seed, mean, dropout),
    }  # fmt: skip
    sums, d_weight, d_bias = split.sums(x), torch.empty_like(mean), torch.empty_like(mean)
    split.launch_over_parts(_gradient_sums_kernel, **common, sums_ptr=sums, skipped_channels=_channels(skipped))
    split.launch_merging(_merge_gradients_kernel, sums_ptr=sums, d_weight_ptr=d_weight, d_bias_ptr=d_bias)
    d_x, d_skipped = _empty_feature_gradients(x, skipped)
    split.launch_over_tiles(
        _norm_act_backward_kernel, skipped, **common, skipped_ptr=x if skipped is None else skipped,
        d_weight_ptr=d_weight, d_bias_ptr=d_bias, d_x_ptr=d_x, d_skipped_ptr=d_skipped,
    )  # fmt: skip
    if split.groups == 1:
        return d_x, d_weight.view(-1).to(weight.dtype), d_bias.view(-1).to(bias.dtype), d_skipped
    return d_x, d_weight.sum(0).to(weight.dtype), d_bias.sum(0).to(bias.dtype), d_skipped


def _empty_gradients(
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
    d_x, d_skipped = _empty_feature_gradients(x_NCHW, skipped_NSHW)
    return d_x, weight.new_empty(weight.shape), bias.new_empty(bias.shape), d_skipped


def _empty_feature_gradients(x_NCHW: Tensor, skipped_NSHW: Tensor | None) -> tuple[Tensor, Tensor]:
    """Those of the features and of the skipped ones, which are empty without any."""
    d_skipped = x_NCHW.new_empty(0) if skipped_NSHW is None else _empty_last(x_NCHW, tuple(skipped_NSHW.shape))
    return _empty_last(x_NCHW, tuple(x_NCHW.shape)), d_skipped


# ---- registration ----

_statistics = register(
    "norm_statistics(Tensor x_NCHW, Tensor(a!)? running_mean, Tensor(b!)? running_variance, Tensor(c!)? batches,"
    " float momentum, float eps, bool instance) -> (Tensor, Tensor)",
    cpu=reference.norm_statistics,
    cuda=_launch_statistics,
    fake=lambda x, running_mean, running_variance, batches, momentum, eps, instance: _empty_statistics(x, instance),
    mutates=("running_mean", "running_variance", "batches"),
)
_norm_act = register(
    "norm_act(Tensor x_NCHW, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, Tensor? seed, Tensor? skipped_NSHW,"
    " float slope, float dropout) -> Tensor",
    cpu=reference.norm_act,
    cuda=_launch_norm_act,
    fake=lambda x, weight, bias, mean, rstd, seed, skipped, slope, dropout: _empty_result(x, skipped),
)
_norm_act_backward = register(
    "norm_act_backward(Tensor d_y, Tensor x_NCHW, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, Tensor? seed,"
    " Tensor? skipped_NSHW, float slope, float dropout) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=reference.norm_act_backward,
    cuda=_launch_backward,
    fake=_empty_gradients,
)

SAVED = 7  # leading arguments of norm_act, tensors or None


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:SAVED])
    ctx.options = inputs[SAVED:]


def _backward_by(gradients: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward pass of norm_act, through its statistics too; the op or the launcher computes the gradients."""

    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = gradients(d_y, *saved, *ctx.options)
        sources = [tensor for tensor in (d_y, *saved) if tensor is not None]
        d_x, d_weight, d_bias, d_skipped = (differentiable_once(gradient, *sources) for gradient in found)
        is_joined = saved[-1] is not None
        return d_x, d_weight, d_bias, None, None, None, d_skipped if is_joined else None, *[None] * len(ctx.options)

    return backward


_norm_act.register_autograd(_backward_by(_norm_act_backward), setup_context=_save)
_triton_norm_act = differentiable(_launch_norm_act, _save, _backward_by(_launch_backward))

# Implementations of norm_act(features, options of statistics, options of the rest). Op and launcher go through the
# statistics in their own backward pass.


def _by_op(features: tuple[Tensor, ...], statistics: tuple[Any, ...], rest: tuple[Any, ...]) -> Tensor:
    result: Tensor = _norm_act(*features, *_statistics(features[0].detach(), *statistics), *rest)
    return result


def _by_triton(features: tuple[Tensor, ...], statistics: tuple[Any, ...], rest: tuple[Any, ...]) -> Tensor:
    result: Tensor = _triton_norm_act(*features, *_launch_statistics(features[0].detach(), *statistics), *rest)
    return result


def _by_reference(features: tuple[Tensor, ...], statistics: tuple[Any, ...], rest: tuple[Any, ...]) -> Tensor:
    x_NCHW, weight, bias = features
    wide = x_NCHW.to(reference.working(x_NCHW.dtype))  # once, so that the gradient is rounded once
    result = reference.norm_act(wide, weight, bias, *reference.norm_statistics(wide, *statistics), *rest)
    return result.to(x_NCHW.dtype)


# ---- public functions ----


class Tracked(NamedTuple):
    """Running statistics of batch normalization, which change in place: mean and variance (C,), float32, and the number
    of batches, int64 (). momentum: the share of the new ones."""

    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float


def norm_act(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: float,
    *,
    eps: float = 1e-5,
    instance: bool = False,
    tracked: Tracked | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    skipped_NSHW: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Features (N,C,H,W), normalized by their own statistics, through leaky ReLU and dropout: (N,C,H,W), channels_last.

    weight, bias: (C,), floating. slope: of the leaky ReLU below 0; 0 is ReLU. instance: normalize each image by itself
    (arXiv:1607.08022), not the batch (arXiv:1502.03167), which can be tracked. dropout: probability [0 to below 1] that
    a value becomes zero; others are divided by 1 - dropout. seed: int64 () on the device, needed with dropout; equal
    seeds drop equal values. skipped_NSHW: (N,S,H,W) of the same type, whose ReLU stands before the result, so that it
    is (N,S+C,H,W). Any strides; channels_last is not copied. Computed in float32, or float64 (not by Triton), rounded
    once. Differentiable once, impl="reference" any number of times. Raises ValueError for other shapes, types or impl,
    or statistics of a single value, RuntimeError for a second derivative.
    """
    _check(x_NCHW, weight, bias, instance, tracked, dropout, seed, skipped_NSHW)
    function = choose(impl, x_NCHW, op=_by_op, triton=_by_triton, reference=_by_reference)
    running = (None, None, None, 0.0) if tracked is None else tracked
    result: Tensor = function((x_NCHW, weight, bias), (*running, eps, instance), (seed, skipped_NSHW, slope, dropout))
    return result


def _check(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor,
    instance: bool,
    tracked: Tracked | None,
    dropout: float,
    seed: Tensor | None,
    skipped_NSHW: Tensor | None,
) -> None:
    check_floating(x_NCHW, weight, bias)
    if x_NCHW.ndim != 4 or weight.shape != x_NCHW.shape[1:2] or bias.shape != weight.shape:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (x_NCHW, weight, bias))
        raise ValueError(f"expected features (N,C,H,W), weight and bias (C,), got {shapes}")
    values = x_NCHW.numel() // max(1, x_NCHW.shape[1]) // (max(1, len(x_NCHW)) if instance else 1)
    if values < 2:
        raise ValueError(f"expected more than 1 value per channel, got features {tuple(x_NCHW.shape)}")
    if tracked and instance:
        raise ValueError("expected no tracked statistics with instance=True")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected a number from 0 to below 1")
    if dropout and (seed is None or seed.dtype != torch.int64 or seed.ndim):
        got = "none" if seed is None else f"{seed.dtype} {tuple(seed.shape)}"
        raise ValueError(f"expected a seed for dropout, int64 (), got {got}")
    if skipped_NSHW is not None:
        n, _, height, width = x_NCHW.shape
        if skipped_NSHW.ndim != 4 or skipped_NSHW.shape != (n, skipped_NSHW.shape[1], height, width):
            raise ValueError(f"expected skipped features ({n},S,{height},{width}), got {tuple(skipped_NSHW.shape)}")
        if skipped_NSHW.dtype != x_NCHW.dtype:
            raise ValueError(f"expected features of one type, got {x_NCHW.dtype} and {skipped_NSHW.dtype}")
    check_one_device(x_NCHW, *(tensor for tensor in (seed, skipped_NSHW, *(tracked or ())[:3]) if tensor is not None))
