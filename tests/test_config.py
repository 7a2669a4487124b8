"""The config: YAML and flags in, one line out for what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.config import Config, optional_keys, policies
from hpc_recolor.config_file import changed_keys, leaves, load_config, load_recorded, merge, nest, to_yaml
from hpc_recolor.launch.sweep import of_grid
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT, Command


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {epochs: 3, lr: 1e-3}\ndata:\n")
    config = load_config(tmp_path / "run.yaml", {"train": {"epochs": 5}})
    assert (config.train.epochs, config.train.lr, config.train.batch_size) == (5, 1e-3, Config().train.batch_size)


@given(st.integers(1, 1000), st.floats(1e-8, 1.0), st.sampled_from(["rgb", "lab"]), st.booleans())
def test_yaml_brings_the_same_config_back(epochs: int, lr: float, color: Any, flip: bool) -> None:
    tree = {"train": {"epochs": epochs, "lr": lr}, "model": {"color": color}, "data": {"flip_vertical": flip}}
    config = load_config(None, tree)
    assert load_config(None, yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("**/*.yaml")), ids=lambda file: str(file.name))
def test_every_config_of_the_project_is_legal_and_says_how_to_run_it(file: Path) -> None:
    load_config(file, {})
    head = file.read_text().split("\n\n")[0].splitlines()[:6]
    for word in ("Hardware:", "Expected:"):
        assert any(word in line for line in head if line.startswith("#")), f"{file.name} does not say {word}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: {epoch: 3}", ["unknown key train.epoch", "did you mean train.epochs?"]),
        ("trian: {epochs: 3}", ["unknown key trian", "did you mean train"]),
        ("train: {epochs: many}", ["train.epochs=many", "valid integer"]),
        ("train: {epochs: 0}", ["train.epochs=0", "greater than or equal to 1"]),
        ("model: {generator: vit}", ["model.generator=vit", "'unet', 'autoencoder', 'resnet' or 'backbone_unet'"]),
        ("train: 3", ["train=3"]),
        ("run: {name: ../x}", ["run.name=../x"]),
        ("[1, 2]", ["holds a list"]),
        ("train: {epochs: 3", ["line 1", "not valid YAML"]),
        ("train: {epochs: 0, lr: x}", ["train.epochs=0", "train.lr=x"]),
        ("data: {size: 100}", ["data.size=100", "multiple of 32"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "run.yaml", {})
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_only_changes_that_make_another_run_are_named() -> None:
    old = Config()
    new = load_config(None, {"train": {"epochs": 99, "lr": 1e-3}, "checkpoint": {"keep": 5}, "model": {"width": 8}})
    assert changed_keys(old, new) == ["model.width: 64 -> 8", "train.lr: 0.0002 -> 0.001"]


def test_every_field_declares_its_policy() -> None:
    keys = [key for key, _ in leaves(Config().model_dump())]
    assert list(policies()) == keys
    operational = {key for key in keys if key.split(".")[0] in ("deepspeed", "checkpoint", "tracking")} | {
        *("run.name", "run.folder", "data.cache", "data.threads", "data.max_unreadable", "train.threads"),
        *("train.compile", "train.graph", "train.snapshots", "train.max_bad_steps", "train.hang_s", "train.silence_s"),
        "train.fit_memory",
    }
    fixed = {"data.held_out", "data.loader", "train.channels_last", "train.device", "train.tf32"}
    assert {key for key, policy in policies().items() if policy.may_change} == operational | {
        "data.photos",
        "data.shards",
        "train.epochs",
    }
    assert {key for key, policy in policies().items() if not policy.recipe} == operational | fixed
    assert [key for key, policy in policies().items() if not policy.in_report] == ["run.name"]


_TREES = st.recursive(st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below, min_size=1)).filter(
    lambda tree: isinstance(tree, dict)
)


@given(_TREES, _TREES)
def test_leaves_and_nest_are_inverse_and_merge_prefers_the_second(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert nest(dict(leaves(one))) == one
    merged = merge(one, two)
    assert merge(merged, two) == merged
    assert dict(leaves(merged)).items() >= dict(leaves(two)).items()


def test_the_reader_of_files_that_are_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text; name a YAML file"):
        load_config(tmp_path / "run.yaml", {})


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 2001-99-99}",
        "train: {lr: !!bool x}",
        "train: {lr: !!timestamp x}",
        "train: {lr: !!int ''}",
        "[" * 10_000,
        "[" * 100_000 + "]" * 100_000,
        "{a: " * 100_000 + "}" * 100_000,
        "- " * 100_000 + "a",
        "? " * 100_000 + "a",
        "train:\n  epochs: 1\t# a tab\n\tlr: 1\n",
        "train: {epochs: 1,\tlr: 1e-3}\n",
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.parametrize("load", [load_config, load_recorded], ids=lambda load: str(load.__name__))
def test_a_value_that_yaml_cannot_make_is_not_valid(load: Callable[[Path], Config], text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path / "run.yaml")


def test_a_recorded_config_is_the_one_that_was_written(tmp_path: Path) -> None:
    config = load_config("quickstart", {"data.photos": "[{photos/\N{BLACK STAR}: - #\t"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_recorded(tmp_path / "config.yaml") == load_config(tmp_path / "config.yaml") == config


def test_what_a_file_contains_is_shown_in_part_however_long_it_is(tmp_path: Path) -> None:
    """Ten aliases of ten aliases ...: a hundred million values in a few lines."""
    lines = ["a0: &a0 lol", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]
    unknown = [f"key{n}: 1" for n in range(1000)]
    for text in ("\n".join([*lines, "train: *a8"]), "\n".join(unknown), f"data: {{size: 0x{'f' * 5000}}}"):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            load_config(tmp_path / "run.yaml", {})
        assert len(str(error.value)) < 10_000


def test_a_config_goes_by_its_name_in_the_package_unless_a_file_has_that_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder is no config
    for name in ("demo", "study/small/3-unet-cars-rgb", "ablation/scale-1.5"):
        assert load_config(name) == load_config(ROOT / "configs" / f"{name}.yaml")
    (tmp_path / "quickstart").write_text("run: {name: mine}")
    assert load_config("quickstart").run.name == "mine"
    assert load_config("./quickstart").run.name == "mine"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("quikstart", ["config=quikstart", "did you mean quickstart?", "ablation/..., colorizer, demo, "]),
        ("study/7", ["study/7-unet-cars-lab-l1, ", "study/small/..."]),
        ("x" * 300, ["no such file or name; use a YAML file, or one of ablation/..."]),
    ],
)
def test_an_unknown_name_of_a_config_gets_the_names_there_are(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(name)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts)


def test_values_over_a_file_may_be_nested_or_by_key() -> None:
    assert load_config(None, {"train.epochs": 3, "model": {"width": 8}}) == load_config(
        None, {"train": {"epochs": 3}, "model": {"width": 8}}
    )


@pytest.mark.parametrize("text", ["null", "none"])
def test_null_is_no_value_on_the_command_line_too(invoke: Command, tmp_path: Path, text: str) -> None:
    """As users of YAML expect, over a file that gives one; for all fields that may have none."""
    given = {key: 3 if key == "train.threads" else "something" for key in optional_keys()}
    assert len(given) >= 7
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nest(given)))
    flags = [part for key in given for part in (f"--{key}", text)]
    printed = dict(leaves(yaml.safe_load(invoke("train", "--config", "mine.yaml", *flags, "--print-config").stdout)))
    assert {key: printed[key] for key in given} == dict.fromkeys(given)


def test_null_is_no_value_in_a_grid_too() -> None:
    configs = of_grid(["train.start_from=null,package"], None, {})
    assert [config.train.start_from for config in configs] == [None, "package"]


def test_a_file_may_be_called_null_and_what_is_not_optional_none(invoke: Command) -> None:
    flags = ["--data.photos", "./null", "--model.backbone_weights", "none", "--loss.adversarial", "none"]
    config = load_config(None, yaml.safe_load(invoke("train", *flags, "--print-config").stdout))
    assert (config.data.photos, config.model.backbone_weights) == (Path("null"), "none")
