"""Two networks, each in a DeepSpeed engine. The only door to deepspeed."""

import ctypes
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator, place
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config
from hpc_recolor.training.engine.gradients import GradientAverage

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Loss scaling as in torch.amp.GradScaler: halved after an overflow, doubled after so many steps without one.
FIRST_LOSS_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000

# How many times as long as at ZeRO 0 a step took: `benchmarks.step`, two CPU ranks, U-Net of width 64, batch 4.
ZERO_SLOWDOWN = {1: 1.35, 2: 1.42, 3: 1.70}


class Engine:
    """A network, its Adam and DeepSpeed around both, at any ZeRO stage. All ranks use it together.

    A step whose gradients are not finite on some rank changes nothing, on any rank, and says so in `skipped`.
    """

    def __init__(self, engine: Any, config: Config, world: World) -> None:
        self.deepspeed = engine
        self.zero_stage: int = config.deepspeed.zero_stage
        self.precision = config.train.precision
        self.loss_scale = FIRST_LOSS_SCALE if self.precision == "fp16" else 1.0
        self.good_steps = 0
        self.channels_last = config.train.channels_last
        self.device = world.device
        self.skipped = torch.zeros((), device=world.device)
        self._gradient_norm = torch.zeros((), device=world.device)
        self._buffers = list(self.module.buffers())
        self._kept_buffers = [buffer.clone() for buffer in self._buffers]
        self._start_moments()
        # One rank has nobody to agree with, and above ZeRO 0 gradients do not stay whole.
        is_ours = world.size > 1 and not self.zero_stage
        self._average = GradientAverage(self.module, world.size) if is_ours else None
        engine.enable_backward_allreduce = self.zero_stage > 0

    @property
    def module(self) -> Any:
        """The network; called directly, gradients pass through it but it does not learn."""
        return self.deepspeed.module

    @property
    def adam(self) -> Any:
        """The torch optimizer, whose parameters are the network's own (ZeRO 0) or flat shares of them."""
        return self.deepspeed.optimizer.optimizer if self.zero_stage else self.deepspeed.optimizer

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A forward pass that the network learns from."""
        return self._forward(self.deepspeed, *inputs)

    def judge(self, *inputs: Tensor) -> Tensor:
        """A forward pass that gradients flow back through, and the network does not learn from."""
        return self._forward(self.module, *inputs)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a 0-dimensional loss; at the last part of a batch they go to the other ranks too."""
        if self.zero_stage:
            if self.loss_scale != 1:
                self.deepspeed.optimizer.override_loss_scale(self.loss_scale)
        elif self.loss_scale != 1:
            loss = loss * self.loss_scale
        if self._average:
            self._average.is_last_part = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """Update the weights, at the last micro-batch of a step; at the others, only count."""
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if last and self._average:
            self._average.finish()
        if last and not self.zero_stage:
            self._check_gradients()
        self.deepspeed.step()
        if last and self.zero_stage:
            self.skipped.fill_(float(self.deepspeed.optimizer.overflow))

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the last step's gradient, over all ranks' shares of it, before it was clipped."""
        if not self.zero_stage:
            return float(self._gradient_norm)
        return float(self.deepspeed.get_global_grad_norm() or 0.0)  # None before the first step

    def keep_buffers(self) -> None:
        """Remember BatchNorm's statistics, before a step."""
        if self._buffers:
            torch._foreach_copy_(self._kept_buffers, self._buffers)

    def roll_back_buffers(self) -> None:
        """Undo what a step did to them."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept_buffers)

    def adapt_loss_scale(self, skipped: bool) -> None:
        """Learn from a step; the same on all ranks. Only fp16 has a scale."""
        if self.precision != "fp16":
            return
        self.good_steps = 0 if skipped else self.good_steps + 1
        if skipped:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self.good_steps % STEPS_TO_DOUBLE == 0:
            self.loss_scale *= 2

    def flat_shares(self) -> list[Tensor]:
        """What Adam updates on this rank: the parameters (ZeRO 0), or float32 shares of them laid end to end."""
        match self.zero_stage:
            case 0:
                return list(self.module.parameters())
            case 3:
                return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return list(self.deepspeed.optimizer.single_partition_of_fp32_groups)

    def spread_weights(self) -> None:
        """Bring the network's weights up to date with the flat shares of all ranks."""
        optimizer = self.deepspeed.optimizer
        if self.zero_stage in (1, 2):
            optimizer.update_lp_params()
        elif self.zero_stage == 3:
            optimizer.checkpoint_event_prologue()
            for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            optimizer.checkpoint_event_epilogue()

    def _forward(self, network: Any, *inputs: Tensor) -> Tensor:
        if self.channels_last:
            inputs = tuple(tensor.contiguous(memory_format=torch.channels_last) for tensor in inputs)
        if self.precision == "fp32":
            output: Tensor = network(*inputs)
            return output
        with torch.autocast(self.device.type, AUTOCAST[self.precision]):
            output = network(*inputs)
        return output.float()

    def _check_gradients(self) -> None:
        # DeepSpeed has no such check at stage 0. Gradients are averaged by now, so all ranks find the same.
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        if self.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self.skipped = 1 - torch.isfinite(self._gradient_norm).float()
        self.deepspeed.optimizer.found_inf = self.skipped  # where it is 1, fused Adam changes nothing

    def _start_moments(self) -> None:
        """Adam's state as it makes it at its first step; here, so that it can be saved and restored before that."""
        for share in self.flat_shares():
            moments = {key: torch.zeros_like(share, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.adam.state[share] = {"step": torch.zeros((), device=share.device), **moments}


@dataclass(frozen=True)
class Engines:
    """The engines of generator and discriminator."""

    generator: Engine
    discriminator: Engine

    def __iter__(self) -> Iterator[Engine]:
        return iter((self.generator, self.discriminator))

    def items(self) -> Iterator[tuple[str, Engine]]:
        """Both, with their names."""
        return iter((("generator", self.generator), ("discriminator", self.discriminator)))


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


def wrap(network: nn.Module, config: Config, world: World) -> Engine:
    """An engine that trains `network` with Adam. All ranks must call it together."""
    deepspeed = _import_deepspeed(world)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.lr, betas=config.train.betas, fused=True)
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=deepspeed_config(config, world.size), dist_init_required=False
    )
    if config.train.channels_last and not config.deepspeed.zero_stage:  # above, weights are parts of flat tensors
        engine.module.to(memory_format=torch.channels_last)  # not before: DeepSpeed sends weights as bytes in a row
    if config.train.compile:
        engine.module.compile()
    return Engine(engine, config, world)


def set_lr(engines: Engines, lr: float) -> None:
    """Give both optimizers this learning rate."""
    for engine in engines:
        for group in engine.adam.param_groups:
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
