"""The command that lists, verifies and exports checkpoints."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpc_recolor import cli
from hpc_recolor.checkpoint import app
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.evaluation.colorizer import Colorizer
from hpc_recolor.models.build import build_generator
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.run_folder import checkpoint_writer, checkpoints
from hpc_recolor.run_folder.files import sha256_of
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.run_folder.tensor_files import write
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT
from tests.conftest import Command, contents, error_line, paint_photo
from tests.support import tolerances
from tests.support.saves import damage, make_manifest
from tests.support.small_runs import write_front

CONFIG = load_config(None, {"data": {"size": 32}, "model": {"width": 4}})


def weights_of(config: Config, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_generator(config.model, config.data.size).state_dict()


def save(run: RunFolder, images_seen: int, kinds: dict[str, int], **changes: Any) -> Path:
    """A checkpoint of two ranks: weights of each kind, drawn with that seed, all on the first."""
    beside = checkpoint_writer.begin(run)
    shapes: dict[str, list[int]] = {}
    shard: dict[str, Tensor] = {}
    torch.manual_seed(0)
    names = {name for name, _ in build_generator(CONFIG.model, CONFIG.data.size).named_parameters()}
    for kind, seed in kinds.items():
        for name, value in weights_of(CONFIG, seed).items():
            if name in names:
                shapes[f"generator/{name}"] = list(value.shape)
                shard[f"generator/{kind}/{name}@0"] = value.reshape(-1)
            else:
                shard[f"generator/averaged/{name}"] = value
    own = {"random": torch.zeros(3, dtype=torch.uint8)}
    tensors = {
        checkpoints.shard_file(0, 2): shard,
        checkpoints.shard_file(1, 2): {"discriminator/weight/w@0": torch.ones(1)},
    }
    tensors |= {checkpoints.rank_file(rank, 2): own for rank in range(2)}
    files = {name: write(beside / name, content) for name, content in tensors.items()}
    return checkpoint_writer.commit(run, beside, make_manifest(images_seen, parameters=shapes, files=files, **changes))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Checkpoints after 8 images, a milestone, and 16."""
    monkeypatch.setenv("COLUMNS", "200")
    run = RunFolder(tmp_path / "run")
    claim(run, CONFIG)
    save(run, 8, {"weight": 1}, snapshot_epoch=15)
    save(run, 16, {"weight": 2, "ema": 3}, zero_stage=3, commit=None)
    return run


def call(*arguments: object) -> int:
    return cli.run(app, [str(argument) for argument in arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert call(*arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_list_shows_a_line_for_each_checkpoint(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(run.checkpoints / "images-000000000008" / "manifest.json", (1_700_000_000,) * 2)
    assert call("list", run.path) == 0
    head, *_, first, second = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert head == ["checkpoint", "epoch", "ranks", "ZeRO", "size", "written", "code"]
    assert first[:4] == ["images-000000000008", "15", "2", "1"]
    assert first[6].startswith("2023-11-1") and first[-1] == "abc"
    assert second[:3] == ["images-000000000016", "2", "3"]
    assert second[-1] == "unknown"


def test_dates_stay_on_one_line_at_80_columns(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    manifest = run.checkpoints / "images-000000000008" / "manifest.json"
    os.utime(manifest, (1_700_000_000,) * 2)
    date = datetime.fromtimestamp(1_700_000_000).astimezone()
    assert call("list", run.path) == 0
    assert f"{date:%Y-%m-%d %H:%M}" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_shows_names_whole(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert call("list", run.path) == 0
    shown = capsys.readouterr().out
    assert "images-000000000008" in shown and "images-000000000016" in shown


def test_list_shows_damaged_ones_too(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.checkpoints / "images-000000000016" / "manifest.json").write_text("")
    assert call("list", run.path) == 0
    last = [line for line in capsys.readouterr().out.splitlines() if line.strip()][-1]
    assert "images-000000000016" in last and "damaged" in last


def test_verify_says_of_each_checkpoint_whether_it_is_whole(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", run.path) == 0
    assert capsys.readouterr().out.splitlines() == ["images-000000000008: intact", "images-000000000016: intact"]
    damage(run.checkpoints / "images-000000000008")
    assert call("verify", run.path) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "images-000000000008: damaged: shard-00001-of-00002.safetensors differs from what was written"
    )
    assert second == "images-000000000016: intact"


def test_export_writes_the_averaged_generator_with_a_card_that_loads_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("export", run.path) == 0
    found, expected = load_file(run.path / "generator.safetensors"), weights_of(CONFIG, 3)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    card = json.loads((run.path / "generator.json").read_text())
    assert card["sha256"] == sha256_of(run.path / "generator.safetensors")
    assert (card["images_seen"], card["averaged"], card["photos"]) == (16, True, "fingerprint")
    assert card["model"] == CONFIG.model.model_dump()
    assert "(N,1,H,W)" in card["input"] and "(N,2,H,W)" in card["output"]
    monkeypatch.chdir(run.path)
    names: dict[str, Any] = {}
    exec(card["load"], names)
    assert names["generator"](torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_a_half_export_is_half_as_large_and_colors_photographs_alone(run: RunFolder, tmp_path: Path) -> None:
    for name, flags in (("whole", ()), ("half", ("--half",))):
        assert call("export", run.path, "--out", tmp_path / f"{name}.safetensors", *flags) == 0
        (tmp_path / f"{name}.json").unlink()
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert 0.45 < sizes[0] / sizes[1] < 0.55
    photo = paint_photo(1, 60, 40)
    expected = np.asarray(Colorizer.load(run.path)(photo)).astype(int)
    np.testing.assert_array_equal(np.asarray(Colorizer.load(tmp_path / "whole.safetensors")(photo)), expected)
    half = np.asarray(Colorizer.load(tmp_path / "half.safetensors")(photo))
    assert np.abs(half - expected).max() <= tolerances.HALF_WEIGHTS_LEVELS


def test_an_export_keeps_the_vividness_that_was_chosen(run: RunFolder, tmp_path: Path) -> None:
    write_front(run.path, "val", 16, {1.0: 8.0, 1.5: 8.1})
    assert call("export", run.path, "--out", tmp_path / "one.safetensors") == 0
    for source in (run.path, tmp_path / "one.safetensors"):
        assert Colorizer.load(source).vividness == 1.5
        assert Colorizer.load(source, 2.0).vividness == 2


def test_a_card_of_format_1_holds_a_factor_on_chroma(tmp_path: Path) -> None:
    with safe_open(COLORIZER, framework="pt") as opened:
        card = json.loads(opened.metadata()["card"]) | {"format": 1, "vividness": 3.0}
        names: list[str] = opened.keys()
        weights = {name: opened.get_tensor(name) for name in names}
    save_file(weights, tmp_path / "old.safetensors", {"card": json.dumps(card)})
    assert Colorizer.load(tmp_path / "old.safetensors").vividness == pytest.approx(2)


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "generator.safetensors"
    write(file, {"weight": torch.zeros(3)})
    with pytest.raises(UserError, match="has no card of a generator"):
        Colorizer.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a safetensors file"):
        Colorizer.load(file)


def test_export_of_a_named_checkpoint_to_another_place(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "new" / "raw.safetensors"
    assert call("export", run.path, "--out", out, "--checkpoint", "images-000000000008") == 0
    expected = weights_of(CONFIG, 1)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(out).items())
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["averaged"], card["snapshot_epoch"], card["weights"]) == (False, 15, "raw.safetensors")


def test_export_replaces_files_only_with_force(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("generator.json", "generator.safetensors"):
        (run.path / name).write_text("mine")
        before = contents(run.path)
        assert f"{name} exists already; give another name, or --force" in refusal(capsys, "export", run.path)
        assert contents(run.path) == before
    assert call("export", run.path, "--force") == 0
    assert len(load_file(run.path / "generator.safetensors")) > 0


def test_export_skips_damaged_checkpoints_and_says_so(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run.checkpoints / "images-000000000016")
    assert call("export", run.path) == 0
    said = capsys.readouterr()
    assert "images-000000000016 is damaged and skipped" in said.err
    assert "after 8 images" in said.out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--out", "generator.pt"),
            "out=generator.pt: not a *.safetensors file; give a name that ends in .safetensors",
        ),
        (("--format", "onnx", "--half"), "--half: is not for --format onnx; use --format safetensors"),
        (("--format", "torch", "--calibrate"), "--calibrate: is not for --format torch"),
        (("--format", "onnx", "--out", "generator.pt2"), "out=generator.pt2: not a *.onnx file"),
        (("--format", "pickle"), "pickle"),
        (("--format", "torch", "--checkpoint", "images-000000000009"), "has no such checkpoint"),
        (("--checkpoint", "images-000000000009"), "use one of images-000000000008, images-000000000016"),
        (("--checkpoint", "../../x"), "has no such checkpoint"),
        (("--checkpoint", "images-000000000016"), "checkpoint=images-000000000016: is damaged: shard-00001"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    run: RunFolder, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], expected: str
) -> None:
    damage(run.checkpoints / "images-000000000016")
    before = contents(run.path)
    assert expected in refusal(capsys, "export", run.path, *flags)
    assert contents(run.path) == before


def test_an_export_that_cannot_be_written_leaves_nothing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    out = "/proc/none/generator.safetensors"
    assert f"out={out}: cannot write /proc/none" in refusal(capsys, "export", run.path, "--out", out)
    before = contents(run.path)
    (run.path / "generator.json").mkdir()
    assert "generator.json (Is a directory)" in refusal(capsys, "export", run.path, "--force")
    (run.path / "generator.json").rmdir()
    assert contents(run.path) == before


def test_a_file_is_not_exported_to_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "colorizer.safetensors: is a safetensors file already; copy it" in refusal(capsys, "export")


def test_a_missing_package_is_named_with_what_installs_it(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refusal(capsys, "export", run.path, "--format", "onnx")
    assert "format=onnx: the package onnxscript is not installed; pip install 'hpc-recolor[onnx]'" in line


@pytest.mark.slow
def test_a_named_checkpoint_becomes_a_program_of_torch_export(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", run.path, "--format", "torch", "--checkpoint", "images-000000000008") == 0
    assert "colorizer after 8 images" in capsys.readouterr().out
    assert not list(run.path.glob(".*.writing")) and (run.path / "generator.pt2").stat().st_size > 0
    assert "generator.pt2 exists already" in refusal(capsys, "export", run.path, "--format", "torch")


@pytest.mark.parametrize("name", ["list", "verify", "export"])
def test_folders_without_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert "is not a run folder" in refusal(capsys, name, tmp_path)
    claim(RunFolder(tmp_path / "empty"), CONFIG)
    assert "has no checkpoint yet; train first" in refusal(capsys, name, tmp_path / "empty")


def test_as_a_command_it_ends_with_its_exit_code(run: RunFolder, command: Command) -> None:
    damage(run.checkpoints / "images-000000000016")
    assert command("checkpoint", "verify", run.path, fresh=True).returncode == 1
    assert "nowhere: is not a run folder" in error_line(command("checkpoint", "verify", "nowhere"))
