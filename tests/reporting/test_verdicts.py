"""Sentences from numbers: what they say, and what they do not claim."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from hpc_recolor.reporting import compare, verdicts
from hpc_recolor.reporting.numbers import number, pair
from hpc_recolor.reporting.runs import Run, read_runs
from tests.reporting.conftest import LAB, RGB, MadeRun


def read(folder: Path, *made: dict[str, Any]) -> list[Run]:
    settings: list[dict[str, Any]] = [{"images": 30, "kept": 0, "seed": place} | one for place, one in enumerate(made)]
    return read_runs([MadeRun(folder / f"run{place}", **one).write() for place, one in enumerate(settings)])


def test_the_interval_is_of_paired_differences() -> None:
    ones, others = [1.0, 2.0, 4.0, 8.0], [2.0, 2.5, 5.5, 8.1]
    difference = pair(zip(ones, others, strict=True))
    assert difference is not None
    differences = [one - other for one, other in zip(ones, others, strict=True)]
    assert difference.difference == pytest.approx(fmean(differences))
    assert difference.half_width == pytest.approx(1.959964 * stdev(differences) / math.sqrt(4))
    assert difference.sign == -1


def test_blanks_are_left_out_and_one_image_has_no_interval() -> None:
    difference = pair([(1.0, 2.0), (None, 3.0), (4.0, None)])
    assert difference is not None
    assert (difference.images, difference.half_width, difference.sign) == (1, None, 0)
    assert pair([(None, 1.0)]) is None


def test_a_run_that_beats_the_gray_copy_is_said_to(tmp_path: Path) -> None:
    (run,) = read(tmp_path, {"over": LAB, "error": 6.0})
    verdict = verdicts.verdict_on(run, "test")
    assert (verdict.headline, verdict.tone) == ("Beats the gray copy", "good")
    assert verdict.sentences[0].startswith("CIEDE2000 ")
    assert "below the gray copy\N{RIGHT SINGLE QUOTATION MARK}s 8.00 by" in verdict.sentences[0]
    assert "Colorfulness 20.0" in verdict.sentences[-1]
    assert "(50 %)" in verdict.sentences[-1]


def test_a_run_that_loses_is_said_to_and_one_that_cannot_be_told_is_left_open(tmp_path: Path) -> None:
    worse, even = read(tmp_path, {"over": LAB, "error": 9.5}, {"over": LAB, "error": 8.0, "noise": 3.0, "seed": 3})
    assert verdicts.verdict_on(worse, "test").headline == "Worse than the gray copy"
    verdict = verdicts.verdict_on(even, "test")
    assert (verdict.tone, verdict.headline) == ("open", "No significant difference from the gray copy")
    assert "not distinguishable from the gray copy" in verdict.sentences[0]


def test_the_page_in_one_line_counts_whom_the_gray_copy_loses_to(tmp_path: Path) -> None:
    runs = read(tmp_path, {"over": LAB, "error": 6.0}, {"over": LAB, "error": 9.5}, {"over": LAB, "error": 8.0})
    better, worse, even = (verdicts.verdict_on(run, "test") for run in runs)
    partly = replace(even, headline="Beats the gray copy in ab error", tone="good")
    groups = compare.group(runs, "test")
    line = verdicts.summary([better, worse], "test", groups)
    assert line.startswith("2 runs, measured on test: 1 of 2 beats the gray copy in CIEDE2000 and ab error; best")
    assert "0 of 2 beat the gray copy in CIEDE2000 and ab error, 1 in one of the two;" in verdicts.summary(
        [worse, partly], "test", groups
    )


def test_rgb_runs_are_also_judged_with_the_photographs_lightness(tmp_path: Path) -> None:
    rgb, lab = read(tmp_path, {"over": RGB}, {"over": LAB})
    assert [one.label for one in verdicts.verdict_on(rgb, "test").standings] == [
        "as generated",
        "with the photograph\N{RIGHT SINGLE QUOTATION MARK}s L*",
    ]
    assert len(verdicts.verdict_on(lab, "test").standings) == 1
    assert any(one.startswith("With the photograph") for one in verdicts.verdict_on(rgb, "test").sentences)


def test_a_run_without_the_evaluation_says_what_to_type(tmp_path: Path) -> None:
    (run,) = read(tmp_path, {"over": LAB, "data": "val"})
    (sentence,) = verdicts.verdict_on(run, "test").sentences
    assert f"python -m hpc_recolor.evaluate {tmp_path / 'run0'}" in sentence
    assert "only of val" in sentence


def test_runs_that_differ_in_one_thing_are_compared_with_numbers(tmp_path: Path) -> None:
    runs = read(tmp_path, {"over": LAB, "error": 6.0}, {"over": RGB, "error": 7.0})
    (found,) = verdicts.compare(runs, "test", compare.group(runs, "test"))
    assert found.title == "Lab against RGB"
    assert found.sentences[0].startswith("CIEDE2000 ")
    assert ", lower by " in found.sentences[0]
    assert found.sentences[0].endswith("over 30 images.")


def test_a_difference_within_the_interval_is_not_claimed(tmp_path: Path) -> None:
    runs = read(tmp_path, {"over": LAB, "noise": 3.0}, {"over": RGB, "noise": 3.0, "error": 6.1})
    (found,) = verdicts.compare(runs, "test", compare.group(runs, "test"))
    assert "no significant difference" in found.sentences[0]


def test_places_and_speed_are_no_difference_and_two_differences_are_no_pair(tmp_path: Path) -> None:
    speed = {"model": {"color": "lab"}, "train": {"threads": 2, "snapshots": [1]}, "tracking": {"samples": 3}}
    other = {"model": {"color": "rgb", "generator": "resnet"}}
    runs = read(tmp_path, {"over": LAB}, {"over": speed}, {"over": other})
    assert list(compare.one_key_apart(runs)) == []


def test_numbers_of_other_photographs_are_not_compared(tmp_path: Path) -> None:
    runs = read(tmp_path, {"over": LAB}, {"over": RGB, "size": 64, "fingerprint": "e"}, {"over": LAB})
    groups = compare.group(runs, "test")
    assert [[run.name for run in one.runs] for one in groups] == [["run0", "run2"], ["run1"]]
    assert compare.why_apart(groups[1], groups[0]) == "64 px, not 32 px"
    smaller = {"over": LAB, "size": 64, "fingerprint": "e"}
    runs = read(tmp_path / "two", {"over": RGB, "size": 64, "fingerprint": "d"}, smaller)
    (found,) = verdicts.compare(runs, "test", compare.group(runs, "test"))
    assert found.sentences == ("Not comparable: they were measured differently (other photographs).",)


def test_the_data_of_most_runs_is_taken_and_in_doubt_test(tmp_path: Path) -> None:
    runs = read(tmp_path, {"over": LAB, "data": "val"}, {"over": LAB, "data": "test"})
    assert compare.choose_data(runs) == "test"
    runs = read(tmp_path / "more", {"over": LAB, "data": "val"}, {"over": LAB, "data": "val"}, {"over": LAB})
    assert compare.choose_data(runs) == "val"


def test_numbers_have_true_minuses_and_no_negative_zero() -> None:
    assert number(-1234.5, 1) == "\N{MINUS SIGN}1,234.5"
    assert number(-0.001) == "0.00"
    assert number(None) == number(float("nan")) == "\N{EN DASH}"
