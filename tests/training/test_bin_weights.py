"""Training on a distribution over bins of ab: by weights from the photographs, and to a file that colors alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.data.sets import collect
from hpc_recolor.evaluation.colorizer import Colorizer
from hpc_recolor.models.color_bins import ColorBins
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.export import export_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.bin_weights import set_bin_weights
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.step import gan_step
from tests.conftest import paint_photo
from tests.support import tolerances, workers
from tests.support.small_runs import ALONE
from tests.support.training_runs import run_config, train
from tests.support.workers import random_batch, small_config
from tests.training.conftest import Worker


def weights_of(config: Config) -> ColorBins:
    bins = ColorBins(config.model.bin_width, config.model.temperature)
    set_bin_weights(bins, config, collect(config, ALONE).train, ALONE)
    return bins


def test_gray_photographs_make_every_color_rare(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(8):
        gray = np.full((32, 32, 3), 20 * number, np.uint8)
        Image.fromarray(gray).save(tmp_path / "photos" / f"{number}.png")
    bins = weights_of(run_config(tmp_path / "photos", tmp_path, **workers.BINS))
    gray_first = bins.centers.norm(dim=1).argsort()
    assert bins.weights[gray_first[0]] < 1
    assert float(bins.weights[gray_first[-1]]) == float(bins.weights.max()) > 1


def test_weights_do_not_depend_on_cache_or_flips(photos: Path, tmp_path: Path) -> None:
    first = weights_of(run_config(photos, tmp_path, **workers.BINS)).weights
    flipped = {"photos": str(photos), "size": 32, "held_out_count": 3, "cache": "host", "flip_horizontal": False}
    assert torch.equal(first, weights_of(run_config(photos, tmp_path, data=flipped, **workers.BINS)).weights)
    assert not torch.equal(first, torch.ones_like(first))


def test_however_large_a_batch_one_image_is_counted_at_a_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    count = ColorBins.count

    def noted_count(bins: ColorBins, ab: torch.Tensor) -> torch.Tensor:
        together.append(len(ab))
        return count(bins, ab)

    monkeypatch.setattr(ColorBins, "count", noted_count)
    weights_of(run_config(photos, tmp_path, **workers.BINS))
    assert set(together) == {1}


@pytest.mark.slow
def test_all_ranks_have_the_weights_of_one(photos: Path, tmp_path: Path, on_ranks: Worker) -> None:
    expected = weights_of(run_config(photos, tmp_path, **workers.BINS)).weights.tolist()
    assert on_ranks(2, workers.bin_weights, str(photos), str(tmp_path)) == [expected] * 2


@pytest.mark.parametrize("reconstruction", ["bins", "l1"])  # the latter through the decoding
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_falls(world: World, reconstruction: str, accumulate: int) -> None:
    loss = workers.BINS["loss"] | {"adversarial": "none", "reconstruction": reconstruction}
    train = {"batch_size": 8, "device": "cpu", "threads": 1, "lr": 2e-3, "accumulate": accumulate}
    config = small_config(model=workers.BINS["model"], loss=loss, train=train)
    engines = build_engines(config, world)
    condition, target = random_batch(0, config)
    target = target.mean((2, 3), keepdim=True).expand_as(target) + 0.3
    losses = [float(gan_step(engines, condition, target, config.loss, accumulate).generator) for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_a_trained_run_colors_alike_from_an_exported_file(photos: Path, tmp_path: Path, world: World) -> None:
    config = run_config(photos, tmp_path, **workers.BINS)
    trainer = train(config, world)
    bins = trainer.state.engines.bins
    assert bins
    assert not torch.equal(bins.weights, torch.ones_like(bins.weights))
    file = tmp_path / "colorizer.safetensors"
    checkpoint, _ = checkpoints.newest_intact(trainer.run)
    export_generator(config, checkpoint, file, half=True)
    photo = paint_photo(1, 97, 64)
    one, other = (np.array(Colorizer.load(source)(photo)).astype(int) for source in (trainer.run.path, file))
    assert np.abs(one - other).max() <= tolerances.HALF_WEIGHTS_LEVELS
