"""The launches of a step, which may only become fewer."""

import pytest

from benchmarks.launches import count, count_batch
from hpc_recolor.config import ColorName
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.distributed import World

# What the study trains with. Lower a number when the step needs fewer.
MOST = {
    "colors": 8,
    "keeping statistics": 2,
    "prediction": 86,
    "discriminator learns": 157,
    "generator learns": 165,
    "agreement": 2,
    "taking back, average": 11,
}


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_a_batch_of_the_device_cache_is_one_launch_beside_two_small_copies(color: ColorName) -> None:
    assert count_batch(color) == {"picks": 2, "batch, colors": 1}


@pytest.mark.slow
def test_no_phase_of_a_step_launches_more_than_it_did(world: World) -> None:
    config = load_config(None, {"model": {"color": "rgb"}, "train": {"precision": "bf16", "channels_last": True}})
    counted = count(config, world)
    assert list(counted) == list(MOST)
    assert {phase: number for phase, number in counted.items() if number > MOST[phase]} == {}
