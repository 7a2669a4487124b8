"""Compiles kernels as their launchers launch them, for GPUs that need not be present, and inspects the binaries."""

import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest.mock import patch  # noqa: TID251, of the compiler that runs, not of ours

from benchmarks.compile_report.ptx import Access, read_accesses

WARP = 32
INSTRUCTION_BYTES = 16

Launch = tuple[Any, dict[str, Any]]  # a kernel and its arguments by name


@dataclass(frozen=True)
class Compiled:
    """A kernel as Triton compiled it."""

    kernel: str
    cubin: bytes
    shared_bytes: int  # per program
    items: float | None  # pixels, or values, of a block per thread
    accesses: tuple[Access, ...]  # according to the PTX
    types: dict[str, str]  # of its arguments, in Triton's notation: "*u8"


@dataclass(frozen=True)
class Usage:
    """Registers and memory that each thread of a kernel needs."""

    registers: int
    spill_bytes: int  # of stack and local memory


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches of a function of recolor_kernels that is called with CPU tensors; no kernel runs."""
    from recolor_kernels import launch

    launches: list[Launch] = []

    def note(kernel: Any, programs: int, /, **arguments: Any) -> None:
        assert hasattr(kernel, "warmup"), f"{kernel}: not compiled, but interpreted"
        launches.append((kernel, arguments))

    # The launchers accept CPU tensors only for the interpreter; but triton was imported without it.
    with patch.object(launch, "launch", note), patch.dict(os.environ, TRITON_INTERPRET="1"):
        call()
    return launches


def compile_for(arch: int, kernel: Any, arguments: dict[str, Any]) -> Compiled:
    """Compile as a launch on a GPU of that architecture would: Triton specializes for the arguments."""
    with _target(arch):
        compiled = kernel.warmup(grid=(1,), **arguments)
    assert compiled is not None, f"{kernel}: triton was imported with TRITON_INTERPRET=1"
    types = {name: kind for name, kind in compiled.src.signature.items() if kind != "constexpr"}
    pointers = {number: name for number, (name, kind) in enumerate(types.items()) if kind.startswith("*")}
    return Compiled(
        kernel=compiled.metadata.name,
        cubin=compiled.asm["cubin"],
        shared_bytes=compiled.metadata.shared,
        items=_items(arguments) / (WARP * compiled.metadata.num_warps) or None,
        accesses=tuple(read_accesses(compiled.asm["ptx"], pointers)),
        types=types,
    )


def _items(arguments: dict[str, Any]) -> int:
    """Pixels, or values, of a block or a tile; 0 if there is neither."""
    return int(arguments.get("BLOCK", arguments.get("ROWS", 0) * arguments.get("CHANNELS", 0)))


class _Driver:
    """A GPU that Triton can compile for but not run on. Its number is its architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, WARP)


@contextmanager
def _target(arch: int) -> Iterator[None]:
    from triton.runtime.driver import driver

    with patch.object(driver, "_active", _Driver(arch)):
        yield


def read_usage(cubin: bytes) -> Usage:
    """Registers and spills of a kernel."""
    text = _run_tool("cuobjdump", "-res-usage", data=cubin)
    counts = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return Usage(int(counts["REG"]), int(counts["STACK"]) + int(counts["LOCAL"]))


def disassemble(arch: int, cubins: list[bytes]) -> list[list[str]]:
    """The opcodes of each kernel, with their modifiers, without the endless loop and the padding at the end.

    All at once, and therefore as bare code: the disassembler takes half a second to start.
    """
    codes = [_code(cubin) for cubin in cubins]
    sass = _run_tool("nvdisasm", "--binary", f"SM{arch}", data=b"".join(codes))
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    assert len(opcodes) * INSTRUCTION_BYTES == sum(map(len, codes)), "some instructions were not parsed"
    rest = iter(opcodes)
    return [_without_tail(list(islice(rest, len(code) // INSTRUCTION_BYTES))) for code in codes]


def _code(cubin: bytes) -> bytes:
    """The instructions: all sections of an ELF file whose names begin with .text."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + number * size) for number in range(count)]
    base = sections[names][1]
    return b"".join(
        cubin[start : start + length] for name, start, length in sections if cubin[base + name :].startswith(b".text")
    )


def _run_tool(name: str, *options: str, data: bytes) -> str:
    """The output of one of the programs in triton's package for a file."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return subprocess.run([tool, *options, file.name], check=True, capture_output=True, text=True).stdout


def _without_tail(opcodes: list[str]) -> list[str]:
    while opcodes and opcodes[-1] in ("NOP", "BRA"):
        opcodes.pop()
    return opcodes


def is_local(opcode: str) -> bool:
    """Whether an instruction reads or writes local memory, where spilled registers go."""
    return opcode.split(".")[0] in ("LDL", "STL")


def widths(opcodes: list[str], *names: str) -> list[int]:
    """The distinct widths in bytes, in order, of the accesses of these names: LDG.E.U8, LDG.E, LDG.E.ENL2.256."""
    return sorted({_bytes(opcode) for opcode in opcodes if opcode.split(".")[0] in names})


def _bytes(opcode: str) -> int:
    for part in reversed(opcode.split(".")):
        if match := re.fullmatch(r"[US]?(8|16|64|128|256)", part):
            return int(match[1]) // 8
    return 4
