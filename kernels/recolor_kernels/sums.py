"""Means in two stages: each program writes a partial sum, then one program adds them up in a fixed order.

The same inputs give the same bits every time, without atomics. Accumulators are float32.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch

BLOCK = 1024  # values, or pixels, that a program works on at a time
MAX_PROGRAMS = 1024  # of each mean: enough for the largest GPUs, and few enough for one program to add up


class Split(NamedTuple):
    """How one mean is split: number of blocks and of programs, and scale = 1 / number of values."""

    blocks: int
    programs: int
    scale: float

    @classmethod
    def of(cls, values: int, blocks: int) -> "Split":
        """A mean over this many values in this many blocks; a mean over nothing is not a number."""
        return cls(blocks, min(blocks, MAX_PROGRAMS), 1 / values if values else math.nan)

    @classmethod
    def of_tensor(cls, tensor: Tensor) -> "Split":
        """A mean over a tensor in blocks of BLOCK values."""
        return cls.of(tensor.numel(), triton.cdiv(tensor.numel(), BLOCK))


NOTHING = Split(blocks=0, programs=0, scale=0.0)


def empty_sums(tensor: Tensor, *splits: Split) -> Tensor:
    """Memory for the partial sum of each program."""
    return tensor.new_empty(sum(split.programs for split in splits), dtype=torch.float32)


def total(
    sums: Tensor, first: Split, second: Split = NOTHING, weights: tuple[float, float] = (1.0, 0.0)
) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted sum of both means, first mean, second mean), each 0-dimensional float32.

    sums: the partial sums of the first mean, then those of the second.
    """
    weighted, first_mean, second_mean = (sums.new_empty(()) for _ in range(3))
    launch.launch(
        _total_kernel, 1, sums_ptr=sums, total_ptr=weighted, first_ptr=first_mean, second_ptr=second_mean,
        first_programs=first.programs, second_programs=second.programs, first_scale=first.scale,
        second_scale=second.scale, first_weight=weights[0], second_weight=weights[1], LANES=MAX_PROGRAMS,
    )  # fmt: skip
    return weighted, first_mean, second_mean


@triton.jit
def _total_kernel(
    sums_ptr, total_ptr, first_ptr, second_ptr, first_programs, second_programs, first_scale, second_scale,
    first_weight, second_weight, LANES: tl.constexpr,
):  # fmt: skip
    """Run as one program."""
    lane = tl.arange(0, LANES)
    first = tl.sum(tl.load(sums_ptr + lane, mask=lane < first_programs, other=0)) * first_scale
    second = tl.sum(tl.load(sums_ptr + first_programs + lane, mask=lane < second_programs, other=0)) * second_scale
    tl.store(first_ptr, first)
    tl.store(second_ptr, second)
    tl.store(total_ptr, first * first_weight + second * second_weight)
