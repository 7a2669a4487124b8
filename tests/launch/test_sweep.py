"""The runs of a sweep: names of their own, and every value where it belongs."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.config import Config
from hpc_recolor.launch import submission
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.submission import Plan
from hpc_recolor.launch.sweep import of_files, of_grid
from hpc_recolor.runtime.errors import UserError


def test_a_grid_is_every_combination_with_a_name_that_shows_it() -> None:
    configs = of_grid(
        ["train.lr=1e-4,2e-4", "model.color=lab,rgb"], None, {"run": {"name": "cars"}, "train": {"epochs": 3}}
    )
    assert [config.run.name for config in configs] == [
        "cars-lr-1e-4-color-lab",
        "cars-lr-1e-4-color-rgb",
        "cars-lr-2e-4-color-lab",
        "cars-lr-2e-4-color-rgb",
    ]
    assert {(config.train.lr, config.model.color, config.train.epochs) for config in configs} == {
        (lr, color, 3) for lr in (1e-4, 2e-4) for color in ("lab", "rgb")
    }


def test_values_that_no_folder_could_have_still_make_a_legal_name() -> None:
    (config,) = of_grid(["data.photos=/photos/a b"], None, {})
    assert config.run.name == "train-photos-_photos_a_b"
    assert config.data.photos == Path("/photos/a b")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["lr=1"], "not section.field=value"),
        (["train.lr"], "not section.field=value"),
        (["train.lr=1,,2"], "not section.field=value"),
        (["train.lr=fast"], "train.lr=fast"),
        (["train.speed=1"], "unknown key train.speed"),
        (["train.lr=1e-4", "train.lr=2e-4"], "train.lr: given twice"),
        (["run.name=a,b"], "named by their values"),
    ],
)
def test_another_spelling_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        of_grid(grid, None, {})


def test_files_name_their_runs_unless_they_set_run_name(tmp_path: Path) -> None:
    (tmp_path / "row1.yaml").write_text("train: {epochs: 3}")
    (tmp_path / "row2.yaml").write_text("run: {name: second}")
    configs = of_files([tmp_path / "row1.yaml", tmp_path / "row2.yaml"], {"run": {"seed": 5}})
    assert [(config.run.name, config.run.seed) for config in configs] == [("row1", 5), ("second", 5)]
    with pytest.raises(UserError, match="needs its own"):
        of_files([tmp_path / "row1.yaml"], {"run": {"name": "both"}})


@given(st.lists(st.text(st.characters(exclude_characters=",")), min_size=2, max_size=4, unique=True))
def test_any_values_give_runs_unique_legal_names(values: list[str]) -> None:
    try:
        configs = of_grid([f"data.photos={','.join(values)}"], None, {})
    except UserError:
        return
    names = [config.run.name for config in configs]
    assert len(set(names)) == len(values), names
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)
    assert [config.data.photos for config in configs] == [Path(value) for value in values]


@pytest.mark.parametrize("grid", [[".lr=1"], ["train.=1"], ["=1"], ["train.lr="], ["train..lr=1"], [""], ["data=1"]])
def test_an_invalid_key_is_refused(grid: list[str]) -> None:
    with pytest.raises(UserError):
        of_grid(grid, None, {})


@pytest.mark.parametrize(
    "text", ["run: 5", "run: text with a name", "run: [name]", "run: {name: ~}", "run: {name: ../x}"]
)
def test_a_file_without_a_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "row.yaml").write_text(text)
    with pytest.raises(UserError):
        of_files([tmp_path / "row.yaml"], {})


def test_a_file_whose_name_no_run_could_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first row.yaml").write_text("train: {epochs: 3}")
    with pytest.raises(UserError, match=r"run\.name=first row"):
        of_files([tmp_path / "first row.yaml"], {})


def plan(configs: list[Config], photos: Path, tmp_path: Path, sweep: str) -> Plan:
    """Of those configs, in a runs folder of the test's own."""
    over = {"data": {"photos": photos}, "run": {"folder": tmp_path / "runs"}}
    ours = [
        config.model_copy(update={key: getattr(config, key).model_copy(update=fields) for key, fields in over.items()})
        for config in configs
    ]
    return submission.plan(ours, JobOptions(), "python -m hpc_recolor.submit", sweep)


def test_two_files_with_one_name_are_refused(photos: Path, tmp_path: Path) -> None:
    files = [tmp_path / folder / "row.yaml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    with pytest.raises(UserError, match="same name"):
        plan(of_files(files, {}), photos, tmp_path, "rows")


def test_a_sweep_has_a_folder_of_its_own_beside_its_runs(photos: Path, tmp_path: Path) -> None:
    made = plan(of_grid(["train.lr=1e-4,2e-4"], None, {}), photos, tmp_path, "rates")
    assert made.folder.path == tmp_path / "runs" / "rates" / "job"
    assert [run.path.name for run in made.runs] == ["train-lr-1e-4", "train-lr-2e-4"]
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_is_named_as_one_of_its_runs_is_refused(photos: Path, tmp_path: Path) -> None:
    """They would share a folder, and the run be taken for the sweep."""
    for name in ("row1", "row2"):
        (tmp_path / f"{name}.yaml").write_text("")
    configs = of_files([tmp_path / "row1.yaml", tmp_path / "row2.yaml"], {})
    with pytest.raises(UserError, match="row1"):
        plan(configs, photos, tmp_path, "row1")


def test_a_value_that_is_too_long_for_a_folder_is_refused_in_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError):
        plan(of_grid([f"deepspeed.config={'x' * 300}"], None, {}), photos, tmp_path, "rows")
