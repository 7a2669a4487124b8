"""Two networks, each in a DeepSpeed engine. The only door to deepspeed."""

import ctypes
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpc_recolor.config import Config
from hpc_recolor.distributed import World
from hpc_recolor.models.build import build_discriminator, build_generator, place


@dataclass(frozen=True)
class Engines:
    """DeepSpeed's engines around generator and discriminator; `.module` of each is the network."""

    generator: Any
    discriminator: Any

    def __iter__(self) -> Any:
        return iter((self.generator, self.discriminator))


def build_engines(config: Config, world: World) -> Engines:
    """Both networks with pix2pix's initial weights from run.seed, and an Adam each, ready to train on all ranks."""
    if world.device.type == "cpu":
        _keep_freed_memory()
    torch.manual_seed(config.run.seed)
    generator = place(build_generator(config.model, config.data.size), config.model, world.device)
    discriminator = place(build_discriminator(config.model), config.model, world.device)
    engines = Engines(wrap(generator, config, world), wrap(discriminator, config, world))
    # From here on random numbers drive dropout alone, and each rank draws its own.
    torch.manual_seed(config.run.seed + 1 + world.rank)
    return engines


def wrap(network: nn.Module, config: Config, world: World) -> Any:
    """A DeepSpeed engine that trains `network` with Adam. All ranks must call it together."""
    deepspeed = _import_deepspeed(world)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.lr, betas=config.train.betas, fused=True)
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=deepspeed_config(config, world), dist_init_required=False
    )
    # One rank has nobody to agree with: DeepSpeed would still copy all gradients into a bucket and back.
    engine.enable_backward_allreduce = world.size > 1
    return engine


def deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """What DeepSpeed is told. Said in full where its own default would change the mathematics."""
    return {
        "train_batch_size": config.train.batch_size,
        "train_micro_batch_size_per_gpu": config.train.batch_size // world.size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # DeepSpeed's default of 1.0 would scale the generator's gradient to a tenth
        "zero_optimization": {"stage": 0},
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU at every forward and step
    }


def set_lr(engines: Engines, lr: float) -> None:
    """Give both optimizers this learning rate."""
    for engine in engines:
        for group in engine.optimizer.param_groups:
            group["lr"] = lr


def _import_deepspeed(world: World) -> Any:
    # Said before the import, or DeepSpeed searches for an accelerator and tells about it.
    os.environ["DS_ACCELERATOR"] = world.device.type
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # No op of its own is needed: its CPU all-reduce serves inference only, yet a first start would compile it (minutes,
    # with g++), after having tried the compiler on every other op.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _keep_freed_memory() -> None:
    """Keep glibc from handing large freed blocks back to the kernel, only to ask for them again within the same step.

    Measured on two cores, U-Net of width 64, batch 4: 14 % of a step's time went into those page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        trim_threshold, mmap_max = -1, -4  # glibc, malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
