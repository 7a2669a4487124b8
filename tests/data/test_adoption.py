"""A run on a prepared data set records how that was prepared, and is refused if it asks for something else."""

from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.data.shards import PrepareOptions
from hpc_recolor.run_folder.folder import claim
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training import preflight
from tests.support.prepared_sets import Prepare


def config(shards: Path, folder: Path, **data: Any) -> Config:
    sections = {"data": {"shards": shards} | data, "run": {"folder": folder}, "train": {"batch_size": 2}}
    return load_config(None, sections)


def test_what_is_not_asked_for_is_taken_from_the_data_set(prepared: Prepare, tmp_path: Path) -> None:
    wanted = config(prepared("raw"), tmp_path)
    found, run = preflight.check(wanted, 1)
    assert (found.data.size, found.data.fit) == (32, "stretch")
    claim(run, found)
    assert load_config(run.config, {}).data == found.data
    assert preflight.check(wanted, 1)[0] == found  # the same command resumes it
    assert preflight.check(load_config(run.config, {}), 1)[0] == found


@pytest.mark.parametrize(("key", "asked", "has"), [("size", 64, 32), ("fit", "crop", "stretch")])
def test_another_size_or_fit_than_the_data_sets_is_refused(
    key: str, asked: object, has: object, prepared: Prepare, tmp_path: Path
) -> None:
    folder = prepared("raw")
    with pytest.raises(UserError) as caught:
        preflight.check(config(folder, tmp_path, **{key: asked}), 1)
    assert str(caught.value) == (
        f"data.{key}={asked}: {folder} was prepared with --{key} {has}; "
        f"use --data.{key} {has}, or prepare the photographs with --{key} {asked}"
    )


def test_a_run_of_an_earlier_version_that_recorded_another_fit_is_corrected(
    prepared: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = config(prepared("raw"), tmp_path, size=32, fit="crop")
    run_file = tmp_path / wrong.run.name / "config.yaml"
    run_file.parent.mkdir()
    run_file.write_text(to_yaml(wrong))
    found, run = preflight.check(wrong, 1)
    claim(run, found)
    assert load_config(run_file, {}).data.fit == PrepareOptions().fit == "stretch"
    line = f"{run_file}: corrected to what its data set was prepared with: data.fit: crop -> stretch\n"
    assert capsys.readouterr().err == line
