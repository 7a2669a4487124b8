"""Checks and times cases at several sizes."""

import time
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from benchmarks.kernels.cases import CASES, Case, Forward, Size, Tensors
from benchmarks.kernels.check import what_is_wrong
from benchmarks.kernels.report import Report, Row, Side, summarize
from benchmarks.kernels.timing import Block, Rotation, Timer, copies, report_progress, sets_for, time_in_turn
from benchmarks.machine import describe_machine
from recolor_kernels import reference

# Also timed in a CUDA graph. Not kornia: it creates tensors from lists in every call, which cannot be captured.
IN_GRAPHS = ("ours", "copy", "eager", "compiled")
LAUNCH_BOUND_BYTES = 64e6  # above this not the eager side: launches do not limit it, and graphs hold memory
COMPILED_ON_CPU = ("rgb_to_gray", "l1_loss")  # 10 s each; the C++ compiler takes 30 s for ops with powers

# A constant for torch.compile, which would otherwise compute the 256 values on the host in every call.
torch.compiler.assume_constant_result(reference._srgb_decode_table.__wrapped__)  # type: ignore[no-untyped-call]

GPU_SIZES = (Size(512, 256), Size(16, 128), Size(128, 256), Size(1, 128), Size(64, 128), Size(256, 128))
CPU_SIZES = (Size(4, 128), Size(1, 128))

Key = tuple[str, str]  # side and mode
LARGE_COPY: Key = ("large copy", "plain")


@dataclass(frozen=True)
class Plan:
    """What to time; the most informative sizes first, since time may run out."""

    sizes: tuple[Size, ...]
    compile_at: tuple[Size, ...]
    compile_ops: Container[str]
    rounds: int
    limit_s: float


def plan_for(timer: Timer, quick: bool, rounds: int) -> Plan:
    """Sizes that fill a GPU within 110 s, or that a CPU finishes within 75 s."""
    if timer.device.type == "cuda":
        plan = Plan(GPU_SIZES, GPU_SIZES[:2], [case.name for case in CASES], rounds, limit_s=110)
    else:
        plan = Plan(CPU_SIZES, CPU_SIZES[1:], COMPILED_ON_CPU, rounds, limit_s=75)
    return replace(plan, sizes=plan.sizes[:2], compile_at=(), rounds=min(rounds, 7)) if quick else plan


def measure(cases: Sequence[Case], timer: Timer, plan: Plan) -> Report:
    """All cases at all sizes of the plan."""
    started_s = time.monotonic()
    machine = describe_machine()
    large_copy = copies(timer.copy_bytes, 1, timer.device)
    rows, left_out = [], []
    pairs = [(case, size) for size in plan.sizes for case in cases]
    for number, (case, size) in enumerate(pairs, 1):
        elapsed_s = time.monotonic() - started_s
        if elapsed_s > plan.limit_s:
            left_out.append(f"{case.name} {size}: no time left")
            continue
        report_progress(f"[{number}/{len(pairs)}] {elapsed_s:.0f} s: {case.name} {size}")
        try:
            rows.append(_row(case, size, timer, plan, large_copy))
            torch.compiler.reset()
            timer.clean_up()
        except Exception as error:  # keeps what was measured before
            left_out.append(f"{case.name} {size}: {_in_words(error)}")
    rows.sort(key=lambda row: ([case.name for case in cases].index(row.op), row.n * row.side_px**2))
    return Report(device=timer.name, cache_bytes=timer.cache_bytes, machine=machine, rows=rows, left_out=left_out)


def _row(case: Case, size: Size, timer: Timer, plan: Plan, large_copy: Block) -> Row:
    trial = _Trial(case, size, timer)
    wrong = trial.check()
    timer.clean_up()
    if wrong is None:
        trial.prepare(compiled=size in plan.compile_at and case.name in plan.compile_ops)
        wrong = trial.left_out.get("ours")
    common: dict[str, Any] = {
        "op": case.name,
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "gradient": case.gradient != "none",
        "n": size.n,
        "side_px": size.side_px,
        "least_bytes": case.least_bytes(size),
    }
    if wrong is not None:
        return Row(**common, calls=0, rounds=0, copy_gb_s=None, wrong=wrong, sides={}, left_out={})
    times = time_in_turn({LARGE_COPY: large_copy} | trial.blocks, timer, plan.rounds)
    copy_gb_s = timer.copy_bytes / median(times.pop(LARGE_COPY)) / 1000
    return Row(
        **common,
        calls=trial.calls,
        rounds=plan.rounds,
        copy_gb_s=copy_gb_s,
        wrong=None,
        sides=_sides(times, trial.calls, case.least_bytes(size), copy_gb_s),
        left_out=trial.left_out,
    )


def _sides(times: Mapping[Key, list[float]], calls: int, least_bytes: int, copy_gb_s: float) -> dict[str, Side]:
    def of(name: str, mode: str) -> Any:
        if (name, mode) not in times:
            return None
        ours = times.get(("ours", mode))
        return summarize(times[name, mode], calls, least_bytes, copy_gb_s, median(ours) / calls if ours else None)

    names = dict.fromkeys(name for name, _ in times)
    return {name: Side(plain=of(name, "plain"), graph=of(name, "graph")) for name in names}


@dataclass
class _Trial:
    """A case at a size: the blocks to time, and what was left out, with the reason."""

    case: Case
    size: Size
    timer: Timer
    blocks: dict[Key, Block] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sets_for(self.case.least_bytes(self.size), self.timer)

    def check(self) -> str | None:
        """Why the op is wrong, or None. An op that raises is wrong too; the others are still measured."""
        try:
            return what_is_wrong(self.case, self._inputs(self.calls))
        except torch.OutOfMemoryError:  # too large, not wrong
            raise
        except Exception as error:
            return _in_words(error)

    def prepare(self, compiled: bool) -> None:
        sets = [self._inputs(number) for number in range(self.calls)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            for name, forward in self._forwards(compiled).items():
                self._add(name, Rotation(self.case.side(forward), sets))
        self._add("copy", copies(self.case.least_bytes(self.size), self.calls, self.timer.device))

    def _inputs(self, seed: int) -> Tensors:
        return self.case.inputs(self.size, self.timer.device, seed)

    def _forwards(self, compiled: bool) -> dict[str, Forward]:
        forwards = {"ours": self.case.calls("auto"), "eager": self.case.calls("reference")}
        if self.case.kornia:
            try:
                import kornia

                forwards["kornia"] = self.case.kornia(kornia)
            except ImportError as error:
                self.left_out["kornia"] = _in_words(error)
        if compiled:
            for name, compiled_name in (("eager", "compiled"), ("kornia", "kornia_compiled")):
                if name in forwards:
                    forwards[compiled_name] = _compiled(forwards[name])
        return forwards

    def _add(self, name: str, block: Rotation) -> None:
        """Run a block once, to compile and allocate, and capture it in a graph. What fails is left out, by name."""
        try:
            block()
        except Exception as error:
            self.left_out[name] = _in_words(error)
            return
        self.blocks[name, "plain"] = block
        if name not in IN_GRAPHS or (name == "eager" and self.case.least_bytes(self.size) > LAUNCH_BOUND_BYTES):
            return
        try:
            graph = self.timer.graph_of(Rotation(block.side, block.sets))
        except Exception as error:
            self.left_out[f"{name} in a graph"] = _in_words(error)
            return
        if graph:
            self.blocks[name, "graph"] = graph


def _compiled(forward: Forward) -> Forward:
    return torch.compile(lambda *inputs: forward(*inputs), dynamic=False)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
