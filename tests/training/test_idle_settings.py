"""Settings that were asked for and change nothing are named."""

from typing import Any

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.training.idle_settings import HOST_CACHE, RULES, idle_settings
from tests.conftest import ROOT


def lines(on_gpu: bool = False, **sections: dict[str, Any]) -> list[str]:
    return idle_settings(load_config(None, sections), on_gpu)


def test_what_another_setting_switches_off_is_named_with_it() -> None:
    asked = lines(model={"backbone_scale": 2.0, "mirrored": True}, loss={"adversarial": "none", "adversarial_from": 9})
    assert asked == [
        "model.backbone_scale=2.0 has no effect: model.generator=unet has no backbone",
        "model.mirrored=True has no effect: model.generator=unet has no backbone",
        "loss.adversarial_from=9 has no effect: loss.adversarial=none",
    ]
    backbone = {"generator": "backbone_unet", "backbone_scale": 2.0}
    assert lines(model=backbone, loss={"adversarial_from": 9}) == []
    assert lines(model={"temperature": 0.5}, loss={"rebalancing": 0.0}) == [
        "model.temperature=0.5 has no effect: model.bin_width=0",
        "loss.rebalancing=0.0 has no effect: loss.reconstruction=l1",
    ]


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_concerns_gpus_is_named_on_a_cpu(on_gpu: bool) -> None:
    asked = lines(on_gpu, data={"cache": "device"}, train={"tf32": True})
    of_cpu = ["train.tf32=True has no effect: it concerns GPUs, and this is a CPU", HOST_CACHE]
    assert asked == ([] if on_gpu else of_cpu)


def test_a_backbone_that_only_a_loss_looks_at_has_its_effect() -> None:
    section = {"backbone": "resnet18"}
    assert len(lines(model=section)) == 1
    assert lines(model=section, loss={"perceptual_weight": 1.0}) == []


def test_defaults_are_not_named() -> None:
    assert idle_settings(Config(), on_gpu=False) == []


def test_every_rule_is_of_settings_that_exist() -> None:
    sections = Config().model_dump()
    for keys, _, _ in RULES:
        for key in keys:
            section, name = key.split(".")
            assert name in sections[section]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda file: file.stem)
def test_no_config_in_the_package_asks_for_what_has_no_effect(file: Any) -> None:
    assert idle_settings(load_config(file, {}), on_gpu=True) == []
