"""Compiles every case for every architecture, and checks the results."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from multiprocessing import get_context

from benchmarks.compile_report import cubin
from benchmarks.compile_report.cases import Case, cases
from benchmarks.compile_report.cubin import Compiled, Launch

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Row:
    """A kernel of an op on one architecture. The widths of its global accesses are distinct and in order."""

    op: str
    kernel: str
    architecture: str
    registers: int
    spill_bytes: int
    local_accesses: int
    shared_bytes: int
    load_bytes: list[int]
    store_bytes: list[int]
    instructions: int
    instructions_per_item: float | None
    violations: list[str] = field(default_factory=list)


@cache
def _recorded() -> list[tuple[Case, list[Launch]]]:
    return [(case, cubin.record(case.call)) for case in cases()]


def compile_case(arch: int, number: int) -> list[Compiled]:
    """Compile one case, by its number: kernels cannot be pickled, so each process records the cases itself."""
    case, launches = _recorded()[number]
    assert launches, f"{case.op}: launched nothing"
    return [cubin.compile_for(arch, kernel, arguments) for kernel, arguments in launches]


def assess(case: Case, arch: int, compiled: Compiled, opcodes: list[str]) -> Row:
    """The row of a compiled kernel, with its violations."""
    usage = cubin.read_usage(compiled.cubin)
    loads, stores = cubin.widths(opcodes, "LDG", "LD"), cubin.widths(opcodes, "STG", "ST")
    row = Row(
        op=case.op,
        kernel=compiled.kernel,
        architecture=f"sm_{arch}",
        registers=usage.registers,
        spill_bytes=usage.spill_bytes,
        local_accesses=sum(map(cubin.is_local, opcodes)),
        shared_bytes=compiled.shared_bytes,
        load_bytes=loads,
        store_bytes=stores,
        instructions=len(opcodes),
        instructions_per_item=len(opcodes) / compiled.items if compiled.items else None,
    )
    return replace(row, violations=list(dict.fromkeys([*_of_binary(row, compiled), *_of_accesses(case, compiled)])))


def _of_binary(row: Row, compiled: Compiled) -> Iterator[str]:
    """Violations of the binary, whose accesses must all be known from the PTX."""
    if row.spill_bytes:
        yield f"spills {row.spill_bytes} bytes a thread"
    if row.local_accesses:
        yield f"has {row.local_accesses} accesses to local memory"
    for load, found in ((True, row.load_bytes), (False, row.store_bytes)):
        for width in set(found) - {access.bytes for access in compiled.accesses if access.load == load}:
            yield f"has a {'load' if load else 'store'} of {width} bytes in the cubin and none in the PTX"


def _of_accesses(case: Case, compiled: Compiled) -> Iterator[str]:
    """Violations of the required widths, and of the rule for offsets."""
    for access in compiled.accesses:
        what = f"{'load from' if access.load else 'store to'} {', '.join(sorted(access.pointers))} at {access.place}"
        least = case.least_bytes(compiled, access)
        if access.bytes < least:
            yield f"{what}: {access.bytes} bytes wide, expected {least} or more"
        for narrow in sorted(access.narrow):
            yield f"{what}: offset from a {narrow}"


def report() -> list[Row]:
    """Compile all cases for all architectures, in as many processes as there are cores."""
    from rich.console import Console
    from rich.progress import track

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton's default, made explicit
    everything = cases()
    tasks = list(product(ARCHITECTURES, range(len(everything))))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        running = pool.map(compile_case, *zip(*tasks, strict=True))
        done = list(track(running, "compiling", total=len(tasks), console=Console(stderr=True)))
    rows: list[Row] = []
    for arch in ARCHITECTURES:
        kernels = [result for task, result in zip(tasks, done, strict=True) if task[0] == arch]
        rows += _assess_all(arch, list(zip(everything, kernels, strict=True)))
    return rows


def _assess_all(arch: int, compiled: list[tuple[Case, list[Compiled]]]) -> list[Row]:
    """The rows of all kernels of all cases; each binary, which several cases may share, is disassembled once."""
    distinct = list({kernel.cubin: None for _, kernels in compiled for kernel in kernels})
    opcodes = dict(zip(distinct, cubin.disassemble(arch, distinct), strict=True))
    return [assess(case, arch, kernel, opcodes[kernel.cubin]) for case, kernels in compiled for kernel in kernels]
