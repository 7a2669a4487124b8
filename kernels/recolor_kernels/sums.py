"""Means in two stages: partial sums, one a program, and one program that adds them up in a fixed order.

So the same inputs give the same bits every time, without atomics. Accumulators are float32.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recolor_kernels import launch

BLOCK = 1024  # values, or pixels, that a program works on at a time
MAX_PROGRAMS = 1024  # for each mean: fills the largest GPUs, and one program can add up as many partial sums


class Split(NamedTuple):
    """How one mean is split: its blocks, its programs, and 1 / its number of values."""

    blocks: int
    programs: int
    scale: float

    @classmethod
    def of(cls, values: int, blocks: int) -> "Split":
        return cls(blocks, min(blocks, MAX_PROGRAMS), 1 / values if values else math.nan)

    @classmethod
    def of_tensor(cls, tensor: Tensor) -> "Split":
        return cls.of(tensor.numel(), triton.cdiv(tensor.numel(), BLOCK))


NOTHING = Split(blocks=0, programs=0, scale=0.0)


def empty_sums(tensor: Tensor, *splits: Split) -> Tensor:
    """Room for the partial sum of each program."""
    return tensor.new_empty(sum(split.programs for split in splits), dtype=torch.float32)


def total(
    sums: Tensor, first: Split, second: Split = NOTHING, weights: tuple[float, float] = (1.0, 0.0)
) -> tuple[Tensor, Tensor, Tensor]:
    """(weighted sum, first mean, second mean), each 0-dimensional."""
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
    lane = tl.arange(0, LANES)
    first = tl.sum(tl.load(sums_ptr + lane, mask=lane < first_programs, other=0)) * first_scale
    second = tl.sum(tl.load(sums_ptr + first_programs + lane, mask=lane < second_programs, other=0)) * second_scale
    tl.store(first_ptr, first)
    tl.store(second_ptr, second)
    tl.store(total_ptr, first * first_weight + second * second_weight)
