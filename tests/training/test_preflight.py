"""What the config alone tells is said before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training import preflight

# Argument: a JSON list of command lines. All run in one process, which fails if that imports torch.
SCRIPT = """
import json, sys
from hpc_recolor import cli, train
codes = [cli.run(train.app, argv) for argv in json.loads(sys.argv[1])]
assert codes == [2] * len(codes), codes
assert "torch" not in sys.modules
"""


def test_a_machine_without_a_compiler_is_told_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, {"train": {"compile": True, "device": "cpu"}})
    preflight.check_compiler(config)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"train\.compile=true: no compiler on this machine \(g\+\+\); install g"):
        preflight.check_compiler(config)
    preflight.check_compiler(load_config(None, {}))


def test_what_the_config_alone_tells_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "diary.txt").write_text("keep me")
    (tmp_path / "zero.json").write_text('{"optimizer": {"type": "SGD"}}')
    (tmp_path / "run.yaml").write_text("train: {epoch: 3}")
    photos = ["--data.photos", "photos"]
    expected = {
        "data.photos and data.shards: neither is set": [],
        "data.photos=missing: no such folder": ["--data.photos", "missing"],
        "data.shards=missing: no such folder": ["--data.shards", "missing"],
        "data.held_out=missing: no such folder": [*photos, "--data.held_out", "missing"],
        "data.held_out=photos: cannot be combined": ["--data.shards", "photos", "--data.held_out", "photos"],
        "deepspeed.config=none.json": [*photos, "--deepspeed.config", "none.json"],
        "deepspeed.config=zero.json": [*photos, "--deepspeed.config", "zero.json"],
        "train.accumulate=3: does not divide": [*photos, "--train.accumulate", "3"],
        "train.epochs=0: input should be greater": [*photos, "--train.epochs", "0"],
        "data.size=48: does not fit model.generator=unet": [*photos, "--data.size", "48"],
        "run.yaml: unknown key train.epoch, did you mean train.epochs?": ["--config", "run.yaml"],
        "run.name=taken": [*photos, "--run.name", "taken"],
    }
    argument = json.dumps(list(expected.values()))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(start in line for start, line in zip(expected, lines, strict=True)), lines
