"""A run folder belongs to one run: that of its config.yaml."""

from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.run_folder.folder import claim, find_run, open_run
from hpc_recolor.runtime.errors import UserError


def config(folder: Path, **train: Any) -> Config:
    return load_config(None, {"run": {"folder": str(folder), "name": "one"}, "train": train})


def test_a_claimed_folder_is_found_by_the_same_run_alone(tmp_path: Path) -> None:
    run = find_run(config(tmp_path))
    claim(run, config(tmp_path))
    assert find_run(config(tmp_path, compile=True)) == run
    with pytest.raises(UserError, match=r"holds another run \(train\.lr: 0\.0002 -> 0\.1\)"):
        find_run(config(tmp_path, lr=0.1))


def test_a_folder_that_another_run_has_claimed_meanwhile_keeps_its_config(tmp_path: Path) -> None:
    run = find_run(config(tmp_path, lr=0.1))
    claim(run, config(tmp_path))
    with pytest.raises(UserError, match="holds another run"):
        claim(run, config(tmp_path, lr=0.1))
    assert open_run(run.path)[1].train.lr == config(tmp_path).train.lr
