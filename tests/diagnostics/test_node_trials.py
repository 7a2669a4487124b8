"""Trials of several nodes, here real probes beside each other on this machine, and what stands for a broken one."""

import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from hpc_recolor.diagnostics import node_trials
from hpc_recolor.diagnostics.node_parts import WINDOW_S, WINDOWS
from hpc_recolor.diagnostics.node_trials import (
    ENOUGH_FAILED,
    Probes,
    Result,
    SignalledError,
    Trial,
    part_limit_s,
    print_result,
    rounds,
    try_all_pairs,
    try_nodes,
    try_together,
)
from hpc_recolor.diagnostics.outliers import METRICS, NodeReport

PROBE = (sys.executable, "-u", "-m", "hpc_recolor.diagnostics.node_probe")
TRIAL = Trial(gpus=0, scratch=None, shared="", job="trial", device="cpu")
SILENT = ("sleep", "600")
BROKEN = ("sh", "-c", "echo slurmstepd: no such user; exit 1")


def try_commands(folder: Path, *commands: Sequence[str], scratch: str | None = None) -> Result:
    """A trial of nodes a, b, ... of which each runs a command."""
    by_node = dict(zip("abcdefgh", commands, strict=False))
    trial = Trial(gpus=0, scratch=scratch, shared=str(folder), job=str(folder), device="cpu")
    return try_nodes([*by_node], trial, lambda node: by_node[node])


@pytest.mark.slow
def test_each_part_is_tried_on_each_node_and_silent_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_trials, "START_LEAST_S", 5.0)
    monkeypatch.setattr(node_trials, "START_RATIO", 1.5)
    result = try_commands(tmp_path, PROBE, PROBE, PROBE, SILENT, BROKEN, scratch=str(tmp_path / "scratch"))
    for report in result.reports[:3]:
        assert report.failures == {}
        assert set(report.values) == {
            *("start", "product", "decode", "memory", "scratch", "scratch_free", "shared", "shared_free")
        }
        assert min(report.values.values()) > 0
        assert abs(report.clock_s or 99) < report.clock_error_s + 0.1
    assert set(map(frozenset, result.pairs)) == set(map(frozenset, combinations("abc", 2)))
    assert min(result.pairs.values()) > 0
    assert result.reports[0].versions == result.reports[1].versions
    assert result.reports[3].silence.startswith("has not answered for")
    assert result.reports[4].silence == "its probe has ended (start): slurmstepd: no such user"
    assert {"d", "e"} <= set(result.bad_nodes)
    assert list(tmp_path.rglob("*.*")) == []  # what was written is gone
    print_result(result)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["node", *"abcde"]


@pytest.mark.slow
def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = try_commands(tmp_path, PROBE, scratch=str(tmp_path / "file"))
    (problem,) = result.problems
    assert problem == f"a: scratch: {tmp_path}/file File exists; repair it, or leave it out"


# Answers as a probe does, slowly and of one part: the orders that it is given, counted from 1, fail as `fails` says.
SCRIPTED = """
import json, sys
fails, values = eval(sys.argv[1]), {{"values": {{"{key}": 100.0}}}}
print('node-probe ' + json.dumps({{"number": 0, "address": "127.0.0.1", "versions": {{}}}}), flush=True)
for count, line in enumerate(sys.stdin, 1):
    answer = {{"failure": "a moment's fault"}} if fails(count) else values
    print('node-probe ' + json.dumps({{"number": json.loads(line)["number"]}} | answer), flush=True)
"""


def scripted(key: str, *fails: str) -> Probes:
    """Probes of nodes a, b, ..., each failing as a function of the number of its order says."""
    by_node = {
        node: (sys.executable, "-S", "-c", SCRIPTED.format(key=key), f"lambda count: {each}")
        for node, each in zip("abcdefgh", fails, strict=False)
    }
    probes = Probes([*by_node], lambda node: by_node[node], 0, METRICS)
    probes.await_start()
    return probes


@pytest.mark.parametrize(("fails", "failures"), [("count == 1", {}), ("count <= 2", {"memory": "a moment's fault"})])
def test_a_part_that_fails_once_and_not_again_has_not_failed(fails: str, failures: dict[str, str]) -> None:
    probes = scripted("memory", "False", fails)
    probes.ask("memory")
    probes.end()
    assert probes.reports["a"].failures == {}
    assert probes.reports["b"].failures == failures


@pytest.mark.parametrize(("fails", "failed"), [("count == 1", []), ("count <= 2", [0.0])])
def test_a_pair_that_fails_once_and_not_again_has_not_failed(fails: str, failed: list[float]) -> None:
    probes = scripted("all_reduce", "False", fails, "False")
    result = Result([*probes.reports.values()])
    try_all_pairs(probes, result, TRIAL)
    probes.end()
    assert len(result.pairs) == 3
    assert [rate for rate in result.pairs.values() if not rate] == failed


@pytest.mark.parametrize(("fails", "together"), [("count == 1", 100.0), ("True", None)])
def test_an_all_reduce_over_all_that_fails_once_and_not_again_has_not_failed(
    fails: str, together: float | None
) -> None:
    probes = scripted("all_reduce", "False", fails, "False")
    result = Result([*probes.reports.values()])
    try_together(probes, result, TRIAL)
    probes.end()
    assert result.together == together
    assert (result.together_failure == "") is (together is not None)


def test_a_node_that_reaches_no_other_is_not_tried_with_all_of_them() -> None:
    probes = scripted("all_reduce", "True", *["False"] * 7)
    result = Result([*probes.reports.values()])
    try_all_pairs(probes, result, TRIAL)
    probes.end()
    assert len([pair for pair in result.pairs if "a" in pair]) == ENOUGH_FAILED


@pytest.mark.parametrize(("ends", "code"), [("exit 140", 140), ("exit 143", 143), ("kill -TERM $$", 143)])
def test_a_signal_of_slurm_accuses_no_node(ends: str, code: int, tmp_path: Path) -> None:
    with pytest.raises(SignalledError) as error:
        try_commands(tmp_path, ("sh", "-c", ends), SILENT)
    assert error.value.exit_code == code


@pytest.mark.parametrize("gpus", [0, 1, 8, 16])
def test_the_limits_leave_time_for_each_gpu(gpus: int) -> None:
    measured_s = WINDOWS * WINDOW_S * (1 + gpus)
    assert part_limit_s("product", gpus) >= 2 * measured_s + 10
    assert part_limit_s("all_reduce", gpus) >= (60 if gpus else 10)


@pytest.mark.parametrize("count", range(1, 9))
def test_every_two_of_a_few_nodes_meet_once_and_no_node_twice_in_a_round(count: int) -> None:
    nodes = "abcdefgh"[:count]
    found = rounds(nodes)
    pairs = [frozenset(pair) for round_ in found for pair in round_]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == set(map(frozenset, combinations(nodes, 2)))
    assert all(len({node for pair in round_ for node in pair}) == 2 * len(round_) for round_ in found)


def test_many_nodes_meet_seven_others_each() -> None:
    found = rounds([str(number) for number in range(512)])
    pairs = {frozenset(pair) for round_ in found for pair in round_}
    assert len(pairs) == 7 * 256
    assert all(sum(node in pair for pair in pairs) == 7 for node in ("0", "1", "300", "511"))


def test_a_part_that_fails_between_nodes_is_a_problem_though_none_is_bad() -> None:
    result = Result([NodeReport(node) for node in "abcd"], pairs=dict.fromkeys(combinations("abcd", 2), 100.0))
    result.pairs["a", "c"] = 0.0
    assert result.bad_nodes == []
    (problem,) = result.problems
    assert problem.startswith("a and c: their all-reduce failed; ")


def test_a_network_that_no_node_can_use_is_one_problem_with_its_reason() -> None:
    probes = scripted("all_reduce", "True", "True", "True")
    result = Result([*probes.reports.values()])
    try_all_pairs(probes, result, TRIAL)
    probes.end()
    assert result.bad_nodes == []
    (problem,) = result.problems
    assert problem.startswith("3 of 3 pairs of nodes: their all-reduce failed (a moment's fault); ")
