"""A run that starts from the generator of another run, of an exported file, or of the package."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.run_folder.checkpoints import evaluation_weights, read_manifest
from hpc_recolor.run_folder.export import export_generator, read_export
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training import preflight
from hpc_recolor.training.run_state import RunState
from tests.support.small_runs import add_checkpoint, make_run
from tests.support.workers import small_config

SMALL = {"width": 2, "color": "lab"}


def started(world: World, source: str | Path, **sections: dict[str, Any]) -> RunState:
    """The state before the first step of a run that starts from `source`."""
    train = {"batch_size": 8, "device": "cpu", "threads": 1, "start_from": str(source)}
    return RunState.initial(small_config(train=train, **sections), world)


def assert_starts_with(state: RunState, weights: dict[str, torch.Tensor]) -> None:
    found = state.engines.generator.module.state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=0, atol=0)
    assert state.average is not None
    for fragment, average in zip(state.average.fragments, state.average.averages, strict=True):
        torch.testing.assert_close(average.flatten(), found[fragment.name].flatten(), rtol=0, atol=0)


@pytest.mark.parametrize("exported", [False, True])
def test_the_generator_starts_as_another_runs_average(
    photos: Path, tmp_path: Path, world: World, exported: bool
) -> None:
    run = make_run(tmp_path / "other", photos)
    checkpoint = add_checkpoint(run, 50)
    weights = evaluation_weights(checkpoint, read_manifest(checkpoint))
    source = tmp_path / "other.safetensors" if exported else run
    if exported:
        export_generator(small_config(model=SMALL), checkpoint, source)
    assert_starts_with(started(world, source, model=SMALL), weights)


def test_the_generator_starts_as_the_one_in_the_package(world: World) -> None:
    packaged = read_export(COLORIZER)
    model = packaged.config.model.model_dump(mode="json") | {"backbone_weights": "none"}
    assert_starts_with(started(world, "package", model=model), packaged.weights)


def test_a_generator_of_another_architecture_is_refused(photos: Path, tmp_path: Path, world: World) -> None:
    run = make_run(tmp_path / "other", photos)
    add_checkpoint(run, 50)
    with pytest.raises(UserError, match=r"does not fit the config.*train with the model section of its config"):
        started(world, run, model=SMALL | {"width": 3})


def test_a_source_that_is_missing_is_refused_before_training(photos: Path, tmp_path: Path) -> None:
    config = small_config(data={"photos": str(photos), "size": 32}, train={"batch_size": 8, "start_from": "gone"})
    with pytest.raises(UserError, match=r"train\.start_from=gone: no such file or folder"):
        preflight.check(config, 1)


def test_a_backbone_that_starts_from_a_colorizer_needs_no_other_weights(photos: Path, tmp_path: Path) -> None:
    model = {"generator": "backbone_unet", "backbone_weights": str(tmp_path / "gone.pth")}
    sections: dict[str, dict[str, Any]] = {"data": {"photos": str(photos), "size": 32}, "model": model}
    run: dict[str, Any] = {"folder": str(tmp_path), "name": "new"}
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        preflight.check(small_config(run=run, train={"batch_size": 8}, **sections), 1)
    preflight.check(small_config(run=run, train={"batch_size": 8, "start_from": "package"}, **sections), 1)
