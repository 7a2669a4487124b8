"""BatchNorm's statistics of exported weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_generator
from hpc_recolor.training.calibration import calibrated
from tests.support import training_runs

pytestmark = pytest.mark.slow


def config_of(photos: Path, folder: Path, **model: Any) -> Config:
    return training_runs.run_config(photos, folder, model={"width": 4, "dropout": 0.5} | model)


def weights_of(config: Config) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_generator(config.model, config.data.size).state_dict()


def is_statistic(name: str) -> bool:
    return "running_" in name or name.endswith("num_batches_tracked")


def test_statistics_become_those_of_the_weights_whatever_they_were(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos, tmp_path)
    weights = weights_of(config)
    wrong = {name: 7 * value if "running_" in name else value for name, value in weights.items()}
    found, again = calibrated(config, weights), calibrated(config, wrong)
    for name, value in weights.items():
        assert torch.equal(found[name], value) or is_statistic(name)
        assert torch.equal(found[name], again[name])
    assert not torch.equal(found["down.1.2.running_var"], weights["down.1.2.running_var"])


@pytest.mark.parametrize("model", [{"norm": "instance"}, {"generator": "backbone_unet", "backbone_weights": "none"}])
def test_what_is_not_of_batches_stays(photos: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    config = config_of(photos, tmp_path, **model)
    weights = weights_of(config)
    changed = {name for name, value in calibrated(config, weights).items() if not torch.equal(value, weights[name])}
    assert all(name.startswith("up.") and is_statistic(name) for name in changed)
    assert bool(changed) == ("norm" not in model)
