"""Kernels with and without faults, compiled for sm_90: prints {kernel: its violations} as JSON.

A program of its own, because the tests interpret Triton's kernels and this one compiles them.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import json

import torch
import triton
import triton.language as tl

from benchmarks.compile_report import cubin
from benchmarks.compile_report.cases import Case
from benchmarks.compile_report.report import assess

BLOCK = 1024
SM_90 = 90


@triton.jit
def faultless(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    """Divides in 32 bits, multiplies in 64, as it should; the remainder is a product too, but of a quotient."""
    program = tl.program_id(0)
    image, first = (program // blocks).to(tl.int64), (program % blocks).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    place = image * size + first + lane
    tl.store(target_ptr + place, tl.load(source_ptr + place, mask=lane < size - first), mask=lane < size - first)


@triton.jit
def multiplies_in_32_bits(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target_ptr + place, tl.load(source_ptr + place))


@triton.jit
def multiplies_in_32_bits_in_a_loop(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), blocks, 64):
        place = (block * size).to(tl.int64) + tl.arange(0, BLOCK)
        tl.store(target_ptr + place, tl.load(source_ptr + place))


@triton.jit
def cuts_to_32_bits(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    place = (tl.program_id(0).to(tl.int64) * size).to(tl.int32) + tl.arange(0, BLOCK)
    tl.store(target_ptr + place, tl.load(source_ptr + place))


@triton.jit
def moves_single_values(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target_ptr + place * 3, tl.load(source_ptr + place * 3))


@triton.jit
def spills(source_ptr, target_ptr, size, blocks, BLOCK: tl.constexpr):
    """Needs more registers than the 24 that its launch allows."""
    first = tl.program_id(0).to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in tl.static_range(8):
        total = tl.exp(total) + tl.load(source_ptr + first + number * BLOCK + lane)
    for number in tl.static_range(8):
        place = first + number * BLOCK + lane
        tl.store(target_ptr + place, total * tl.load(source_ptr + place))


def main() -> None:
    source, target = torch.zeros(2, 64 * BLOCK)
    arguments = {"source_ptr": source, "target_ptr": target, "size": BLOCK, "blocks": 12, "BLOCK": BLOCK}
    plain = (faultless, multiplies_in_32_bits, multiplies_in_32_bits_in_a_loop, cuts_to_32_bits, moves_single_values)
    compiled = [cubin.compile_for(SM_90, kernel, arguments) for kernel in plain]
    compiled.append(cubin.compile_for(SM_90, spills, {**arguments, "maxnreg": 24}))
    opcodes = cubin.disassemble(SM_90, [each.cubin for each in compiled])
    case = Case("planted", lambda: None)
    rows = [assess(case, SM_90, each, codes) for each, codes in zip(compiled, opcodes, strict=True)]
    print(json.dumps({row.kernel: row.violations for row in rows}))


if __name__ == "__main__":
    main()
