"""A user's DeepSpeed file is merged with the run's config, and never overrides it silently."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.engine.engine_state import shapes
from hpc_recolor.training.engine.zero_engine import ZeroEngine


def config_with(tmp_path: Path, content: Any, zero_stage: int = 2, **train: Any) -> Config:
    file = tmp_path / "deepspeed.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    section = {"batch_size": 8, "device": "cpu", "threads": 1} | train
    return load_config(
        None, {"deepspeed": {"config": file, "zero_stage": zero_stage}, "train": section, "data": {"size": 32}}
    )


def test_what_the_run_does_not_say_is_taken(tmp_path: Path, world: World) -> None:
    theirs = {"zero_optimization": {"reduce_bucket_size": 1234567, "stage": "auto"}, "train_batch_size": "auto"}
    config = config_with(tmp_path, theirs)
    merged = deepspeed_config(config, ranks=1)
    assert merged["zero_optimization"] == {"reduce_bucket_size": 1234567, "stage": 2}
    assert merged["train_batch_size"] == 8
    assert isinstance(engine := build_engines(config, world).generator, ZeroEngine)
    assert engine.deepspeed.optimizer.reduce_bucket_size == 1234567


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_averaged_in_a_buffer_of_the_size_of_their_network(
    stage: int, tmp_path: Path, world: World
) -> None:
    for engine in build_engines(config_with(tmp_path, {}, zero_stage=stage), world):
        assert isinstance(engine, ZeroEngine)
        numel = sum(torch.Size(shape).numel() for shape in shapes(engine).values())
        assert engine.deepspeed.optimizer.reduce_bucket_size == numel


def test_the_same_value_twice_is_no_conflict(tmp_path: Path) -> None:
    merged = deepspeed_config(config_with(tmp_path, {"gradient_clipping": 0.0, "wall_clock_breakdown": False}), ranks=2)
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["wall_clock_breakdown"] is False


def test_every_conflict_is_named(tmp_path: Path) -> None:
    theirs = {"train_batch_size": 64, "zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 1}
    with pytest.raises(UserError) as refused:
        deepspeed_config(config_with(tmp_path, theirs), ranks=1)
    line = str(refused.value)
    assert "train_batch_size: 64 there, 8 by the run" in line
    assert "zero_optimization.stage: 3 there, 2 by the run" in line
    assert "gradient_accumulation_steps" not in line


@pytest.mark.parametrize("theirs", [{"optimizer": {"type": "Adam"}}, {"fp16": {"enabled": True}}, {"scheduler": {}}])
def test_what_the_run_decides_alone_is_refused_with_its_own_key(tmp_path: Path, theirs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(theirs))} cannot be set there: .*train\."):
        deepspeed_config(config_with(tmp_path, theirs), ranks=1)


def test_what_has_no_effect_at_stage_0_is_refused_there(tmp_path: Path) -> None:
    theirs = {"flops_profiler": {"enabled": True}, "prescale_gradients": True, "wall_clock_breakdown": False}
    deepspeed_config(config_with(tmp_path, theirs), ranks=1)
    with pytest.raises(UserError, match=r": flops_profiler, prescale_gradients: without effect at .*zero_stage=0"):
        deepspeed_config(config_with(tmp_path, theirs, zero_stage=0), ranks=1)


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "not valid JSON"), ("[1]", "contains a list"), ("\x00", "not valid JSON")]
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        deepspeed_config(config_with(tmp_path, content), ranks=1)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = load_config(None, {"deepspeed": {"config": tmp_path / "none.json"}})
    with pytest.raises(UserError, match="No such file"):
        deepspeed_config(config, ranks=1)
