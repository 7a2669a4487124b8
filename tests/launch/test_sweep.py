"""The runs of a sweep: names of their own, and every value where it belongs."""

from pathlib import Path

import pytest

from hpc_recolor.errors import UserError
from hpc_recolor.launch.sweep import of_files, of_grid


def test_a_grid_is_every_combination_with_a_name_that_tells_it() -> None:
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
    ("grid", "said"),
    [
        (["lr=1"], "write section.field=value"),
        (["train.lr"], "write section.field=value"),
        (["train.lr=1,,2"], "write section.field=value"),
        (["train.lr=fast"], "train.lr=fast"),
        (["train.speed=1"], "unknown key train.speed"),
        (["train.lr=1e-4", "train.lr=2e-4"], "train.lr twice"),
        (["run.name=a,b"], "named by their values"),
    ],
)
def test_another_spelling_is_refused(grid: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        of_grid(grid, None, {})


def test_files_give_their_runs_a_name_unless_they_say_one(tmp_path: Path) -> None:
    (tmp_path / "row1.yaml").write_text("train: {epochs: 3}")
    (tmp_path / "row2.yaml").write_text("run: {name: second}")
    configs = of_files([tmp_path / "row1.yaml", tmp_path / "row2.yaml"], {"run": {"seed": 5}})
    assert [(config.run.name, config.run.seed) for config in configs] == [("row1", 5), ("second", 5)]
    with pytest.raises(UserError, match="needs its own"):
        of_files([tmp_path / "row1.yaml"], {"run": {"name": "both"}})
