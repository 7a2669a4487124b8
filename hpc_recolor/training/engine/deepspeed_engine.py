"""Both networks as engines, initialized by DeepSpeed. The only module that imports deepspeed."""

import ctypes
import logging
import os
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator, load_weights, place
from hpc_recolor.models.perceptual_loss import PerceptualLoss
from hpc_recolor.models.weights_package import start_of
from hpc_recolor.run_folder.export import read_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config, with_bucket
from hpc_recolor.training.engine.engine import Engine, Engines
from hpc_recolor.training.engine.zero_engine import ZeroEngine

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_engines(config: Config, world: World, alone: bool = False) -> Engines:
    """Both networks with their initial weights, and an Adam each. All ranks call it together.

    Weights are drawn from run.seed as in pix2pix, or a backbone's or train.start_from's. Seeds torch: afterwards random
    numbers, which drive dropout alone, differ between ranks. alone: whether this rank calls it alone, and the engines
    are those of a run on one rank at ZeRO 0. Raises UserError if pretrained weights do not fit.
    """
    if world.device.type == "cpu":
        _keep_freed_memory()
    torch.manual_seed(config.run.seed)
    generator = place(_initial_generator(config), config.model, world.device)
    discriminator = place(build_discriminator(config.model), config.model, world.device)
    perceptual = PerceptualLoss(config.model).to(world.device) if config.loss.perceptual_weight else None
    if perceptual:
        _autocast(perceptual, config, world)
    wrapped = _wrap_alone if alone else wrap
    engines = Engines(wrapped(generator, config, world), wrapped(discriminator, config, world), perceptual)
    torch.manual_seed(config.run.seed + 1 + world.rank)
    return engines


def _initial_generator(config: Config) -> nn.Module:
    start = start_of(config.train)
    generator = build_generator(config.model, config.data.size, pretrained=start is None)
    if start:
        trained = read_generator(start)
        load_weights(generator, trained.weights, trained.path, "train with the model section of its config")
    return generator


def wrap(network: nn.Module, config: Config, world: World) -> Engine:
    """An engine that trains `network` with Adam. All ranks call it together."""
    deepspeed = _import_deepspeed(world)
    _autocast(network, config, world)
    optimizer = _adam(network, config)
    settings = with_bucket(deepspeed_config(config, world.size), network)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings, dist_init_required=False)
    if config.train.channels_last and not config.deepspeed.zero_stage:  # above, weights are views of flat tensors
        engine.module.to(memory_format=torch.channels_last)  # not earlier: DeepSpeed broadcasts contiguous weights
    _compile(engine.module, config, world)
    if config.deepspeed.zero_stage:
        return ZeroEngine(engine, config, world)
    # The step calls the network itself: DeepSpeed's hooks there would only take time.
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        hook.remove()
    return Engine(engine.module, optimizer, config, world)


def _wrap_alone(network: nn.Module, config: Config, world: World) -> Engine:
    """As `wrap`, compiled in the same parts, but without other ranks and DeepSpeed, which would broadcast to them."""
    _autocast(network, config, world)
    if config.train.channels_last:
        network.to(memory_format=torch.channels_last)
    _compile(network, config, world)
    return Engine(network, _adam(network, config), config, replace(world, rank=0, size=1))


def _adam(network: nn.Module, config: Config) -> torch.optim.Adam:
    return torch.optim.Adam(_parameter_groups(network), lr=config.train.lr, betas=config.train.betas, fused=True)


def _compile(network: nn.Module, config: Config, world: World) -> None:
    if config.train.compile:
        for part in compiled_parts(network, world.size):
            part.compile(options=compile_options(config))


def compiled_parts(network: nn.Module, ranks: int) -> list[nn.Module]:
    """What is compiled, each as a whole: the network, or on several ranks the blocks of its lists, if it has any.

    The gradients of what is compiled arrive together, when its backward pass is over. Those of a block are averaged
    over the ranks while the blocks before it are computed.
    """
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return [block for blocks in lists for block in blocks] if ranks > 1 and lists else [network]


def compile_options(config: Config) -> dict[str, bool]:
    """Inductor's options for both networks.

    By itself it gives up channels_last in a network with a convolution to less than half the channels that it is given,
    such as the discriminator's last, from 512 to 1.
    """
    return {"force_layout_optimization": config.train.channels_last}


def _autocast(network: nn.Module, config: Config, world: World) -> None:
    """Let a network compute in train.precision.

    Inside its forward: DeepSpeed's own forward switches off an autocast that was opened around it, on GPUs.
    """
    if dtype := AUTOCAST.get(config.train.precision):
        network.forward = torch.autocast(world.device.type, dtype)(network.forward)


def _parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Adam's groups: all parameters, or those of a pretrained backbone apart, for a learning rate of their own."""
    backbone = getattr(network, "backbone", None)
    if backbone is None:
        return [{"params": list(network.parameters())}]
    pretrained = list(backbone.parameters())
    known = set(pretrained)
    others = [parameter for parameter in network.parameters() if parameter not in known]
    return [{"params": others}, {"params": pretrained, "is_backbone": True}]


def _import_deepspeed(world: World) -> Any:
    # Set before the import, or DeepSpeed searches for an accelerator and logs it.
    os.environ["DS_ACCELERATOR"] = world.device.type
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # None of its ops is needed: its CPU all-reduce serves inference only, yet the first start would compile it with g++
    # (minutes), after probing the compiler for every other op.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _keep_freed_memory() -> None:
    """Keep glibc from returning large freed blocks to the kernel, only to request them again within the same step.

    Those page faults took 14 % of a step (measured on two cores, U-Net of width 64, batch 4).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        trim_threshold, mmap_max = -1, -4  # glibc, malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)
