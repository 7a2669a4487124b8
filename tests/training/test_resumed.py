"""A checkpoint says which run it is of, and what it was computed with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpc_recolor.config import Config
from hpc_recolor.run_folder.checkpoints import committed, read_manifest
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from tests.support import training_runs
from tests.support.training_runs import train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_config(photos: Path, folder: Path, epochs: int, l1_weight: float = 100.0) -> Config:
    section = {"epochs": epochs, "batch_size": 4, "device": "cpu"}
    return training_runs.run_config(
        photos, folder, train=section, loss={"l1_weight": l1_weight}, data={"loader": "torch"}
    )


def test_a_checkpoint_of_another_run_is_refused(photos: Path, tmp_path: Path, world: World) -> None:
    """As where a folder was restored from the wrong copy: weights and photographs fit, and nothing else does."""
    other = train(run_config(photos, tmp_path / "other", epochs=2, l1_weight=10.0), world).run
    own = train(run_config(photos, tmp_path / "own", epochs=1), world).run
    copied = own.checkpoints / committed(other)[-1].name
    shutil.copytree(committed(other)[-1], copied)
    with pytest.raises(UserError, match=r"is of another run \(loss.l1_weight: 10.0 -> 100.0\); remove it, or restore"):
        train(run_config(photos, tmp_path / "own", epochs=3), world)
    shutil.rmtree(copied)
    train(run_config(photos, tmp_path / "own", epochs=2), world)


def test_another_number_of_threads_is_named_where_a_run_resumes(
    photos: Path, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(run_config(photos, tmp_path, epochs=1), world).run
    recorded = read_manifest(committed(run)[-1]).computed_with
    assert recorded == {"device": "cpu", "loader": "torch", "threads": "1"}
    train(run_config(photos, tmp_path, epochs=2), world)
    assert "resumed with" not in capsys.readouterr().out
    torch.set_num_threads(2)
    train(run_config(photos, tmp_path, epochs=3), world)
    assert "resumed with threads 2 in place of 1: results may differ by rounding" in capsys.readouterr().out


def test_a_run_goes_on_with_photographs_that_were_moved_and_not_with_others(
    photos: Path, tmp_path: Path, world: World
) -> None:
    before = Path(shutil.copytree(photos, tmp_path / "before"))
    train(run_config(before, tmp_path, epochs=1), world)
    after = before.rename(tmp_path / "after")
    assert train(run_config(after, tmp_path, epochs=2), world).images_seen == 24
    photo = next(file for file in sorted(after.rglob("*")) if file.is_file())
    content = bytearray(photo.read_bytes())
    content[-1] ^= 1
    photo.write_bytes(content)
    with pytest.raises(UserError, match="was trained on other photographs"):
        train(run_config(after, tmp_path, epochs=3), world)
