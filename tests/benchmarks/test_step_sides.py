"""What `benchmarks.step` times, and what it says about it."""

import json
from pathlib import Path

import pytest

from benchmarks.step import report
from tests.benchmarks.test_results import StepResult
from tests.conftest import ROOT
from tests.support.commands import Done, run_forked, run_here
from tests.support.fork_server import ForkServer

SMALL = (
    *("--model.width", 2, "--train.batch_size", 4, "--data.size", 32, "--train.threads", 1, "--train.device", "cpu"),
    *("--rounds", 7, "--steps", 1),
)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loops_step_is_timed_beside_a_plain_one(fork_server: ForkServer, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "step.json"
    sides = ("--sides", "zero0", "zero1") if ranks == 2 else ("--sides", "zero0")
    bf16 = ("--train.precision", "bf16", "--train.channels_last=true")
    done = run_forked(fork_server, ROOT, "benchmarks.step", (*SMALL, *sides, *bf16, "--out", out), ranks)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    result["machine"]["commit"] = result["machine"]["commit"] or "outside of a repository"
    StepResult.model_validate(result)
    assert list(result["step_ms"]) == ["plain", *sides[1:]]
    assert (result["ranks"], {len(times) for times in result["times_ms"].values()}) == (ranks, {7})
    assert result["launches"]["zero0"] > result["launches"]["plain"] > 200
    assert done.stdout.splitlines() == report(result)


def test_a_loss_that_the_plain_step_does_not_have_is_refused() -> None:
    for flags in (("--loss.adversarial", "mse"), ("--loss.reconstruction", "huber"), ("--loss.perceptual_weight", 1)):
        refused: Done = run_here(ROOT, "benchmarks.step", flags)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {flags[0][2:]}={flags[1]}")
