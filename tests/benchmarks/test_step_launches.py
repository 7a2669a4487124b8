"""The launches and the memory traffic of a step, which may only become less."""

import pytest

from benchmarks.launches import count, count_batch, network_traffic
from hpc_recolor.config import ColorName
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.distributed import World

# What the study trains with. Lower a number when the step needs fewer.
MOST = {
    "colors": 8,
    "keeping statistics": 2,
    "prediction": 70,
    "discriminator learns": 163,
    "generator learns": 171,
    "agreement": 2,
    "taking back, average": 11,
}
# MB an image that both networks move outside of convolutions.
MOST_MOVED = 53.4


@pytest.mark.slow
def test_networks_move_no_more_than_they_did() -> None:
    config = load_config(None, {"model": {"color": "rgb", "width": 64}})
    assert round(network_traffic(config.model, 128) / 1e6, 1) <= MOST_MOVED


@pytest.mark.parametrize("color", ["rgb", "lab"])
def test_a_batch_of_the_device_cache_is_one_launch_beside_two_small_copies(color: ColorName) -> None:
    assert count_batch(color) == {"picks": 2, "batch, colors": 1}


@pytest.mark.slow
def test_no_phase_of_a_step_launches_more_than_it_did(world: World) -> None:
    config = load_config(None, {"model": {"color": "rgb"}, "train": {"precision": "bf16", "channels_last": True}})
    counted = count(config, world)
    assert list(counted) == list(MOST)
    assert {phase: number for phase, number in counted.items() if number > MOST[phase]} == {}
