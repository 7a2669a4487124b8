"""The demo, shortened: every part of it runs, on the photographs inside pip packages."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.package_photos import tile_boxes
from hpc_recolor.demo import default_config
from hpc_recolor.models import weights_package
from tests.conftest import ROOT, Command

SHORT = ("--train.epochs", "1", "--model.width", "2", "--train.batch_size", "32", "--train.device", "cpu")


def test_demo_leaves_all_it_promises_and_says_how_well_it_did(command: Command, tmp_path: Path) -> None:
    config = ROOT / "configs" / "demo.yaml"
    first, second = (command("demo", "--config", config, *SHORT, fresh=fresh) for fresh in (True, False))
    for done in (first, second):
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "runs" / "demo-photographs" / "colorized.jpg") as table:
        assert table.width == 4 * 320 + 3 * 4
    run = tmp_path / "runs" / "demo"
    for name in ("config.yaml", "metrics.jsonl", "losses.png", "samples", "checkpoints", "colorized/grace_hopper.png"):
        assert (run / name).exists()
        assert str(Path("runs/demo") / name) in first.stdout
    with Image.open(run / "colorized" / "grace_hopper.png") as colored:
        assert colored.size == (512, 600)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "held_out"][-1]
    found = re.search(r"model ([\d.]+), gray copy ([\d.]+) \((\d+)% (lower|higher)\)", first.stdout)
    assert found
    assert float(found[1]) == round(last["ab_error"], 2)
    assert found[4] == ("lower" if last["ab_error"] < last["gray_ab_error"] else "higher")
    assert "is finished" in second.stdout
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]


def test_the_demo_trains_on_a_backbone_where_its_weights_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(config: Config) -> str:
        return f"{config.run.name} {config.model.generator}"

    assert of(load_config(default_config())) == "demo backbone_unet"
    monkeypatch.setitem(weights_package.PACKAGES, "tf_efficientnet_lite0", ("no_such_package", ""))
    assert of(load_config(default_config())) == "demo unet"


def test_held_out_tiles_share_no_pixel_with_tiles_to_learn_from() -> None:
    for width, height in ((512, 512), (451, 300), (741, 500)):
        learned, held_out = tile_boxes(width, height)
        assert len(learned) > 20
        assert held_out
        seen = {(x, y) for left, top, right, bottom in learned for x in range(left, right) for y in range(top, bottom)}
        for left, top, right, bottom in held_out:
            assert not any((x, y) in seen for x in range(left, right) for y in range(top, bottom))
