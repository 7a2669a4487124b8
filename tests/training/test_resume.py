"""A run that is stopped and resumed is the same run: bit for bit on as many ranks, by conversion on others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.distributed import World
from tests.conftest import this_rank
from tests.support import tolerances, workers
from tests.support.training_runs import differences, run_config, state, train
from tests.training.conftest import Worker

Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(photos: Path, folder: Path, on_ranks: Worker) -> Found:
    """What each rank found, by number of ranks; a launch costs half a minute, so there is one for each number."""
    arguments = (str(photos), str(folder))
    return {
        1: [workers.resumptions(this_rank(), *arguments, None)],
        4: on_ranks(4, workers.resumptions, *arguments, None),
        2: on_ranks(2, workers.resumptions, *arguments, 4),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_stopped_run_that_goes_on_ends_as_one_that_was_never_stopped(found: Found, ranks: int) -> None:
    """At every ZeRO stage, in Lab and RGB: weights, moments, average, learning rate, random states, losses to log.
    Stopped in the middle of an epoch, at its edge, and after the first step."""
    assert len(found[ranks]) == ranks
    for rank in found[ranks]:
        assert rank["stopped"].keys() == workers.STOPPED_RUNS.keys()
        assert {name: different for name, different in rank["stopped"].items() if different} == {}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_stages_and_ranks_agree_over_20_steps(found: Found, ranks: int) -> None:
    """At the same global batch, with norms that see all ranks' images, and no dropout."""
    expected = torch.tensor(found[1][0]["losses"]["0"])
    for stage, losses in found[ranks][0]["losses"].items():
        apart = ((torch.tensor(losses) - expected).abs() / expected.abs()).amax(dim=1)
        assert len(apart) == 20
        assert apart[:5].max() <= tolerances.RANKS_FLOAT32_5_STEPS, stage
        assert apart.max() <= tolerances.RANKS_FLOAT32_20_STEPS, stage


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (1, 3)])
def test_on_other_ranks_and_stages_weights_and_moments_are_the_same_to_the_bit(
    found: Found, before: int, after: int, photos: Path, folder: Path, on_ranks: Worker
) -> None:
    """And every sample is seen exactly once per epoch, and losses continue where they were."""
    begun = found[before][0]["begun"]
    resumed = found[after][0]["resumed"] if after == 2 else None
    if resumed is None:
        resumed = on_ranks(after, workers.resume_runs, str(photos), f"{folder}/begun on {before}")[0]
    for name in workers.OTHER_STAGES:
        assert resumed[name]["restored"] == begun[name]["saved"], name
        drawn = begun[name]["drawn"] + resumed[name]["drawn"]
        assert sorted(drawn) == sorted(list(range(12)) * (len(drawn) // 12))
        assert all(sorted(drawn[start : start + 12]) == list(range(12)) for start in range(0, len(drawn), 12))
        expected, loss = begun[name]["last loss"], resumed[name]["first loss"]
        assert abs(loss - expected) < tolerances.LOSS_CONTINUES * expected


@pytest.mark.slow
def test_the_same_seed_twice_is_the_same_run(photos: Path, tmp_path: Path, world: World) -> None:
    one, two = (state(train(run_config(photos, tmp_path / name), world)) for name in ("one", "two"))
    assert differences(one, two) == []
    other = state(train(run_config(photos, tmp_path / "other", run={"folder": str(tmp_path), "seed": 1}), world))
    assert differences(one, other) != []


@pytest.mark.slow
def test_rows_and_pictures_are_those_of_one_run(photos: Path, tmp_path: Path, world: World) -> None:
    tracking = {"tensorboard": True, "log_every_steps": 3, "samples_every_images": 12}
    whole = train(run_config(photos, tmp_path / "whole", tracking=tracking), world)
    config = run_config(photos, tmp_path / "parts", tracking=tracking)
    train(config, world, stop_at_step=4)
    torch.manual_seed(123)  # what another process would start with
    parts = train(config, world)
    assert rows(parts.run) == rows(whole.run)
    at_the_stop = "images-000000000020.png"
    assert {path.name for path in parts.run.samples.iterdir()} == {
        at_the_stop,
        *(path.name for path in whole.run.samples.iterdir()),
    }


def rows(run: RunFolder) -> list[dict[str, Any]]:
    """What a run logged, without times."""
    found = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("images_per_s", "rank_tflop_per_s")}
        for row in found
        if row["kind"] not in ("start", "checkpoint")
    ]
