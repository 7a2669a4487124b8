"""What loaders supply beside what training needs."""

import json
from pathlib import Path

import pytest

from benchmarks.data import BASELINE, images_per_s_needed, print_result
from hpc_recolor.config import Config
from hpc_recolor.runtime.errors import UserError


def test_the_need_is_a_number_or_what_a_rank_of_the_loops_fastest_step_consumes(tmp_path: Path) -> None:
    assert images_per_s_needed("15000") == 15_000
    step = {"images_per_s": {"plain": 900.0, "zero0": 800.0, "zero1": 700.0}, "ranks": 2}
    (tmp_path / "step.json").write_text(json.dumps(step))
    assert images_per_s_needed(str(tmp_path / "step.json")) == 400


@pytest.mark.parametrize("need", ["many", "0", "-1", "nan", "inf", "list.json", "plain.json", "nowhere.json"])
def test_another_need_is_refused(tmp_path: Path, need: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("plain.json").write_text('{"images_per_s": {"plain": 5}, "ranks": 1}')
    with pytest.raises(UserError, match=f"need={need}: .*; give images/s above 0, or a file"):
        images_per_s_needed(need)


def test_supply_is_printed_beside_the_need(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {BASELINE: [50.0] * 3, "DALI, photographs": [100.0] * 3, "host cache": [800.0] * 3}
    result = {"images_per_s": rates, "machine": {"gpu": None, "cores": 2}, "needed_images_per_s": 400.0, "step_ms": {}}
    print_result(result, Config())
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "training is said to need 400 images/s",
        "  with DALI, photographs: 0.25 times the images/s that it needs: too slow, the step waits 75% of the time",
        "  with host cache: 2.00 times the images/s that it needs",
    ]
    measured = result | {
        "needed_images_per_s": None,
        "step_ms": {"no loader": [32.0] * 3, "DALI, photographs": [160.0] * 3, "host cache": [33.0] * 3},
    }
    print_result(measured, Config())
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "the step (width 64) takes 32 ms: it needs 500 images/s",
        "  with DALI, photographs: 0.20 times the images/s that it needs: too slow, the step waits 80% of the time, "
        "160 ms a step",
        "  with host cache: 1.60 times the images/s that it needs, 33 ms a step",
    ]
