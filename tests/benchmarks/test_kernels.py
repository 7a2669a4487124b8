"""The benchmark of kernels: checks, timing and report; an op that fails its check has no times. Speed is not tested."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import cases as kernel_cases
from benchmarks.kernels import measure as kernel_measure
from benchmarks.kernels import timing
from benchmarks.kernels.cases import CASES, Case, Size
from benchmarks.kernels.check import what_is_wrong
from benchmarks.kernels.measure import Plan, measure
from benchmarks.kernels.report import Report, Row, line, verdicts
from benchmarks.kernels.timing import CpuTimer, Rotation, copies, sets_for, time_in_turn
from hpc_recolor import cli
from tests.conftest import ROOT

CPU = torch.device("cpu")

# Colors of the eager side and of kornia's, mean difference [Lab units, levels, or RGB in 0..1], by type.
KORNIA = {torch.bfloat16: 0.1, torch.float32: 1e-3, torch.uint8: 0.01}
TINY = Size(2, 32)
LAB = next(case for case in CASES if case.name == "rgb_to_lab")
L1 = next(case for case in CASES if case.name == "l1_loss")


class SmallTimer(CpuTimer):
    copy_bytes = 2**12


def plan(*sizes: Size) -> Plan:
    return Plan(sizes or (TINY,), (), (), rounds=7, limit_s=60)


def spoiled(case: Case, spoil: Callable[[Tensor], Tensor]) -> Case:
    """The same op, with its first result changed in impl="auto"."""

    def forward(impl: str, dtype: torch.dtype, *inputs: Tensor) -> Any:
        values = case.forward(impl, dtype, *inputs)
        first, *others = values if isinstance(values, tuple) else (values,)
        return (spoil(first) if impl == "auto" else first, *others)

    return replace(case, forward=forward)


# ---- the cases ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_op_passes_its_check(case: Case) -> None:
    assert what_is_wrong(case, case.inputs(TINY, CPU, seed=1)) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_least_bytes_are_each_input_and_each_result_once(case: Case) -> None:
    inputs = case.inputs(TINY, CPU, seed=1)
    values, gradients = case.side(case.calls("reference"))(*inputs)
    counted = [tensor for tensor in (*inputs, *values, *gradients) if tensor.ndim > 1]  # no losses, no metrics
    if case.gradient == "given":
        counted += [tensor for tensor in inputs if tensor.requires_grad and tensor.ndim > 1]  # read again
    assert case.least_bytes(TINY) == sum(tensor.nbytes for tensor in counted)


def test_least_bytes_are_those_of_the_issue() -> None:
    a_pixel = {case.name: case.bytes_a_pixel for case in CASES}
    assert a_pixel["rgb_to_lab"] == a_pixel["lab_to_rgb_u8"] == 9
    assert (a_pixel["l1_lab_loss"], a_pixel["l1_lab_loss_ab"], a_pixel["l1_loss"]) == (15, 11, 2 * (2 + 2 + 2))


def test_kornia_makes_the_same_colors() -> None:
    kornia = pytest.importorskip("kornia")
    for case in (case for case in CASES if case.kornia):
        assert case.kornia is not None
        inputs = case.inputs(TINY, CPU, seed=1)
        ours, theirs = case.calls("reference")(*inputs), case.kornia(kornia)(*inputs)
        if isinstance(ours, tuple):  # kornia returns Lab units, and RGB in [0, 1]
            ours = torch.cat(((ours[0].float() + 1) * 50, ours[1].float() * 110), dim=1)
        elif ours.is_floating_point():
            ours = (ours + 1) / 2
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs.double()).abs().mean() < KORNIA[theirs.dtype], case.name


# ---- wrong ops ----


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda values: values * 1.02, "value 0: worst error 0.02"),
        (lambda values: values * float("nan"), "value 0: worst error nan"),
        (lambda values: values[..., 1:], "value 0: shape"),
        (lambda values: torch.empty_like(values), "value 0: worst error"),
    ],
    ids=["scaled", "nan", "short", "unwritten"],
)
def test_a_wrong_value_is_found(spoil: Callable[[Tensor], Tensor], reason: str) -> None:
    assert reason in str(what_is_wrong(spoiled(LAB, spoil), LAB.inputs(TINY, CPU, seed=1)))


def test_a_wrong_gradient_is_found() -> None:
    wrong = spoiled(L1, lambda loss: loss.detach() + 0.9 * (loss - loss.detach()))
    assert "gradient 0: norm error 0.1" in str(what_is_wrong(wrong, L1.inputs(TINY, CPU, seed=1)))


@pytest.mark.slow
def test_a_wrong_op_has_no_speed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("no such kernel")

    planted = [spoiled(LAB, lambda values: values + 1), replace(L1, forward=raises), L1]
    table = tuple(replace(case, name=name) for case, name in zip(planted, "abc", strict=True))
    monkeypatch.setattr(kernel_cases, "CASES", table)
    monkeypatch.setattr(kernel_measure, "CPU_SIZES", (TINY, Size(1, 32)))
    with pytest.raises(SystemExit) as stopped:
        cli.run(kernels.app, ["--quick", "--out", str(tmp_path)])
    assert stopped.value.code == 1
    (file,) = tmp_path.glob("kernels-*.json")
    report = Report.model_validate_json(file.read_text())
    wrong, broken, right = report.rows[::2]  # each at two sizes
    assert wrong.wrong is not None and wrong.wrong.startswith("value 0: worst error")
    assert broken.wrong == "RuntimeError: no such kernel"
    assert right.wrong is None and right.sides["ours"].plain.p50_us > 0
    assert all(row["sides"] == {} and row["copy_gb_s"] is None for row in json.loads(file.read_text())["rows"][:4])
    printed = [text for text in capsys.readouterr().out.splitlines() if "WRONG" in text]
    assert [text.split()[0] for text in printed] == ["a", "a", "b", "b"]
    assert not any(" us" in text for text in printed)


def test_the_schema_refuses_a_speed_of_a_wrong_op() -> None:
    row = measure([LAB], SmallTimer(), plan()).rows[0].model_dump()
    with pytest.raises(ValidationError, match="either wrong or timed"):
        Row(**row | {"wrong": "value 0"})
    with pytest.raises(ValidationError, match="either wrong or timed"):
        Row(**row | {"sides": {}})


# ---- timing ----


def test_sides_take_turns() -> None:
    order: list[str] = []
    times = time_in_turn({name: partial(order.append, name) for name in "abc"}, CpuTimer(), rounds=21)
    assert [len(times[name]) for name in "abc"] == [21, 21, 21]
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {names[0] for names in rounds} == {"a", "b", "c"}
    assert len(set(itertools.pairwise(order))) > 3  # none always follows the same one


def test_each_call_has_inputs_and_results_of_its_own() -> None:
    block = Rotation(lambda values: values + 1, [(torch.zeros(3),), (torch.ones(3),)])
    block()
    first, second = block.results
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first.data_ptr() != second.data_ptr() and second[0] == 2


def test_sets_reach_past_the_cache() -> None:
    timer = CpuTimer()
    timer.cache_bytes = 50_000_000
    assert sets_for(1_000_000_000, timer) == 2
    assert sets_for(20_000_000, timer) * 20_000_000 >= timing.CACHES * timer.cache_bytes
    assert sets_for(1000, timer) == timing.MOST_SETS


def test_a_copy_reads_and_writes_its_bytes() -> None:
    block = copies(1000, 2, CPU)
    block()
    for source, target in block.sets:
        assert source.nbytes + target.nbytes == 1000
        assert torch.equal(source, target)


def test_no_case_is_begun_after_the_limit() -> None:
    report = measure([LAB, L1], SmallTimer(), replace(plan(), limit_s=0))
    assert report.rows == []
    assert report.all_left_out == ["rgb_to_lab 2x32x32: no time left", "l1_loss 2x32x32: no time left"]


def test_a_side_that_fails_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernel_measure, "_compiled", lambda _: raises)
    report = measure([L1], SmallTimer(), replace(plan(), compile_at=(TINY,), compile_ops=("l1_loss",)))
    assert report.rows[0].left_out == {"compiled": "RuntimeError: no compiler"}
    assert set(report.rows[0].sides) == {"ours", "eager", "copy"}
    assert report.all_left_out == ["compiled (RuntimeError: no compiler): l1_loss 2x32x32"]


# ---- the report ----


@pytest.mark.slow
def test_the_command_writes_a_valid_report_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("times the GPU here")
    assert cli.run(kernels.app, ["--quick", "--ops", "l1_loss,rgb_to_gray", "--out", str(tmp_path)]) == 0
    report = Report.model_validate_json((tmp_path / "kernels-cpu.json").read_text())
    assert {row.op for row in report.rows} == {"l1_loss", "rgb_to_gray"}
    assert all(row.sides["eager"].plain.times_ours for row in report.rows)
    assert (tmp_path / "kernels-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("no GPU: the CPU implementations only")


def test_without_matplotlib_there_is_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    kernels.save(measure([LAB], SmallTimer(), plan()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kernels-cpu.json"]
    assert "no plot" in capsys.readouterr().err


def as_on_gpu(row: Row) -> Row:
    """The same row with large inputs and a graph beside each plain time."""
    sides = {name: side.model_copy(update={"graph": side.plain}) for name, side in row.sides.items()}
    return row.model_copy(update={"least_bytes": 10**8, "sides": sides})


def test_a_gpu_report_is_drawn_and_names_its_targets(tmp_path: Path) -> None:
    on_cpu = measure([LAB, L1, spoiled(replace(LAB, name="wrong"), torch.zeros_like)], SmallTimer(), plan())
    rows = [as_on_gpu(row) if row.sides else row for row in on_cpu.rows]
    report = on_cpu.model_copy(update={"device": "NVIDIA H100 80GB HBM3", "rows": rows})
    assert report.file_stem == "kernels-nvidia-h100-80gb-hbm3"
    kernels.save(report, tmp_path)
    assert (tmp_path / f"{report.file_stem}.png").exists()
    texts = verdicts(report)
    assert [text.split(",")[0] for text in texts[:2]] == ["conversion", "loss"]
    assert "target 90%" in texts[0] and "rgb_to_lab 2x32x32" in texts[0]
    assert "graph" in line(rows[0])


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks/results").glob("kernels-*.json")), ids=lambda file: file.stem
)
def test_committed_results_are_valid(file: Path) -> None:
    report = Report.model_validate_json(file.read_text())
    assert report.file_stem == file.stem
    assert report.rows and not any(row.wrong for row in report.rows)
    assert {"torch", "triton"} <= set(report.machine["versions"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ops", "rgb_to_xyz"], "ops=rgb_to_xyz: no such op; use some of rgb_to_lab,"),
        (["--out", "/nowhere"], "out=/nowhere: no such folder"),
        (["--rounds", "3"], "rounds"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(kernels.app, flags) == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert text.startswith("error: ") and expected in text
