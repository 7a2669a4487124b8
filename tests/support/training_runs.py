"""Runs on painted photographs, stopped where a test wants it, and all that training changes in them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data.sets import collect
from hpc_recolor.run_folder.folder import find_run
from hpc_recolor.runtime.distributed import World, on_main
from hpc_recolor.runtime.errors import EarlyEndError
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training.engine.engine import Engines
from hpc_recolor.training.engine.engine_state import (
    MOMENTS,
    WEIGHT,
    adam_steps,
    averaged_buffers,
    full_state,
    owned,
    shapes,
)
from hpc_recolor.training.tracking import tracker
from hpc_recolor.training.trainer import Trainer


def run_config(photos: Path | str, folder: Path | str, **sections: dict[str, Any]) -> Config:
    """Steps of 4 on 12 photographs of 32 px, 3 an epoch, with dropout; a checkpoint only where a test asks for one."""
    base: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder)},
        "data": {"photos": str(photos), "held_out_count": 3, "size": 32},
        "model": {"width": 4},
        "train": {"epochs": 3, "batch_size": 4, "lr_constant": 0.5, "device": "cpu", "threads": 1},
        "checkpoint": {"every_s": 3600, "every_images": 1_000_000, "keep": 10},
        "tracking": {"log_every_steps": 3, "samples_every_images": 1_000_000, "tensorboard": False},
    }
    return load_config(None, {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def without_plots() -> None:
    """A plot takes longer than all else in a small run; other tests draw them."""
    setattr(tracker, "plot_losses", lambda *_: None)  # noqa: B010


def make(
    config: Config, world: World, stop_at_step: int | None = None, in_phase: str = "training", at_once: bool = True
) -> Trainer:
    """A trainer; its last rank alone receives a signal in that phase of that step.

    at_once: all ranks stop after that step, as if something were due after each; else they may stop two steps later.
    """
    request = StopRequest()

    def enter_phase(phase: str, step: int) -> None:
        if phase == in_phase and step == stop_at_step and world.rank == world.size - 1:
            request.signal = "SIGTERM"

    run = on_main(world, lambda: find_run(config))
    trainer = Trainer(config, world, collect(config, world), run, request, enter_phase)
    if stop_at_step is not None and at_once:
        setattr(trainer, "_is_due", lambda: True)  # noqa: B010
    return trainer


def train(config: Config, world: World, stop_at_step: int | None = None, at_once: bool = True) -> Trainer:
    """Train to the end, or to the stop, as of `make`."""
    trainer = make(config, world, stop_at_step, at_once=at_once)
    try:
        trainer.run_loop()
    except EarlyEndError:
        assert stop_at_step is not None
    else:
        assert stop_at_step is None
    return trainer


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training changes, by name, gathered from all ranks. All ranks call it together."""
    world = trainer.world
    everything = {"random": torch.get_rng_state(), "losses": trainer.state.counters.losses_sum.clone()}
    everything |= networks(trainer.state.engines, world)
    for network, engine in trainer.state.engines.items():
        everything |= {f"{network}.own.{name}": buffer.clone() for name, buffer in engine.module.named_buffers()}
        everything[f"{network}.lr"] = torch.tensor([group["lr"] for group in engine.adam.param_groups])
    if average := trainer.state.average:
        parts = list(zip(average.fragments, average.averages, strict=True))
        averages = full_state(trainer.state.engines.generator, parts, world)
        everything |= {f"average.{name}": tensor.clone() for name, tensor in averages.items()}
    return everything


def networks(engines: Engines, world: World) -> dict[str, Tensor]:
    """Both networks' weights, moments and step counts, and statistics averaged over ranks, by name."""
    everything: dict[str, Tensor] = {}
    for network, engine in engines.items():
        fragments = owned(engine, world)
        for kind in (WEIGHT, *MOMENTS):
            values = [(part, part.tensors[kind]) for part in fragments]
            tensors = full_state(engine, values, world)
            everything |= {f"{network}.{kind}.{name}": tensors[name].clone() for name in shapes(engine)}
        everything |= {f"{network}.{name}": value for name, value in averaged_buffers(engine, world).items()}
        everything[f"{network}.steps"] = torch.tensor(adam_steps(engine))
    return everything


def differences(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not bitwise equal."""
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]
