"""Two networks, each in a DeepSpeed engine. The only module that imports deepspeed."""

import ctypes
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator, load_weights, place
from hpc_recolor.models.perceptual_loss import PerceptualLoss
from hpc_recolor.models.weights_package import start_of
from hpc_recolor.run_folder.export import read_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config
from hpc_recolor.training.engine.gradients import GradientAverage

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Loss scaling as in torch.amp.GradScaler: halved after an overflow, doubled after STEPS_TO_DOUBLE steps without one.
FIRST_LOSS_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000

# Step time relative to ZeRO 0, by stage: `benchmarks.step`, two CPU ranks, U-Net of width 64, batch 4.
ZERO_SLOWDOWN = {1: 1.35, 2: 1.42, 3: 1.70}


class Engine:
    """A network and its Adam, wrapped by DeepSpeed, at any ZeRO stage. All ranks use it together.

    A step whose gradients are not finite on some rank changes nothing, on any rank. skipped: float tensor (), 1 if that
    was so in the last step, else 0. loss_scale: factor on losses in backward passes, 1 unless precision is fp16.
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
        # One rank needs no average; above ZeRO 0 DeepSpeed averages while it partitions the gradients.
        averages_here = world.size > 1 and not self.zero_stage
        self._average = GradientAverage(self.module, world.size) if averages_here else None
        engine.enable_backward_allreduce = self.zero_stage > 0

    @property
    def module(self) -> Any:
        """The network itself, without DeepSpeed's hooks; see `frozen_forward`."""
        return self.deepspeed.module

    @property
    def adam(self) -> Any:
        """The torch optimizer, over the network's own parameters (ZeRO 0) or flat partitions of them."""
        return self.deepspeed.optimizer.optimizer if self.zero_stage else self.deepspeed.optimizer

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A forward pass that the network learns from. Returns float32."""
        return self._forward(self.deepspeed, *inputs)

    def frozen_forward(self, *inputs: Tensor) -> Tensor:
        """A forward pass past DeepSpeed: gradients flow through to the inputs, but the network learns nothing from it
        if its parameters require no gradients. Returns float32."""
        return self._forward(self.module, *inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a 0-dimensional loss; at the last microbatch, average them over ranks."""
        if self.zero_stage:
            if self.loss_scale != 1:
                self.deepspeed.optimizer.override_loss_scale(self.loss_scale)
        elif self.loss_scale != 1:
            loss = loss * self.loss_scale
        if self._average:
            self._average.is_last_microbatch = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """Update the weights, at the last microbatch of a step; at the others, only count."""
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
        """Euclidean norm of the last step's gradient, over all ranks' partitions, before clipping."""
        if not self.zero_stage:
            return float(self._gradient_norm)
        return float(self.deepspeed.get_global_grad_norm() or 0.0)  # None before the first step

    def keep_buffers(self) -> None:
        """Keep a copy of BatchNorm's statistics, before a step."""
        if self._buffers:
            torch._foreach_copy_(self._kept_buffers, self._buffers)

    def roll_back_buffers(self) -> None:
        """Restore BatchNorm's statistics to those before the step."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept_buffers)

    def adapt_loss_scale(self, skipped: bool) -> None:
        """Adapt the loss scale after a step; skipped must be the same on all ranks. Does nothing unless fp16."""
        if self.precision != "fp16":
            return
        self.good_steps = 0 if skipped else self.good_steps + 1
        if skipped:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self.good_steps % STEPS_TO_DOUBLE == 0:
            self.loss_scale *= 2

    def adam_parameters(self) -> list[Tensor]:
        """Tensors that Adam updates on this rank: the parameters (ZeRO 0), or flat float32 partitions of them."""
        match self.zero_stage:
            case 0:
                return list(self.module.parameters())
            case 3:
                return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return list(self.deepspeed.optimizer.single_partition_of_fp32_groups)

    def publish_weights(self) -> None:
        """Copy Adam's flat partitions of all ranks into the network's weights. All ranks call it together."""
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
        output: Tensor = network(*inputs)
        return output if self.precision == "fp32" else output.float()

    def _check_gradients(self) -> None:
        # DeepSpeed has no such check at stage 0. Gradients are averaged by now, so all ranks agree.
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        if self.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self.skipped = 1 - torch.isfinite(self._gradient_norm).float()
        self.deepspeed.optimizer.found_inf = self.skipped  # where it is 1, fused Adam changes nothing

    def _start_moments(self) -> None:
        """Create Adam's state as its first step would, so that it can be saved and restored before that."""
        for parameter in self.adam_parameters():
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


@dataclass(frozen=True)
class Engines:
    """The engines of generator and discriminator, and a frozen network that the generator learns from, if any."""

    generator: Engine
    discriminator: Engine
    perceptual: PerceptualLoss | None = None

    def __iter__(self) -> Iterator[Engine]:
        return iter((self.generator, self.discriminator))

    def items(self) -> Iterator[tuple[str, Engine]]:
        """Pairs of network name and engine, the generator first."""
        return iter((("generator", self.generator), ("discriminator", self.discriminator)))

    def set_lr(self, lr: float, backbone_scale: float = 1.0) -> None:
        """Set the learning rate of both optimizers. backbone_scale: factor on that of a pretrained backbone."""
        for engine in self:
            for group in engine.adam.param_groups:
                group["lr"] = lr * backbone_scale if group.get("is_backbone") else lr

    @property
    def cost_of_stage(self) -> str | None:
        """What the ZeRO stage costs, for the user; None at stage 0."""
        stage = self.generator.zero_stage
        if not stage:
            return None
        return (
            f"deepspeed.zero_stage={stage} saves memory and costs time: on two CPU ranks a step of the U-Net took "
            f"{ZERO_SLOWDOWN[stage]} times as long as at stage 0, where networks of this size fit"
        )


def build_engines(config: Config, world: World) -> Engines:
    """Both networks with their initial weights, and an Adam each. All ranks call it together.

    Weights are drawn from run.seed as in pix2pix, or a backbone's or train.start_from's. Seeds torch: afterwards random
    numbers, which drive dropout alone, differ between ranks. Raises UserError if pretrained weights do not fit.
    """
    if world.device.type == "cpu":
        _keep_freed_memory()
    torch.manual_seed(config.run.seed)
    generator = place(_initial_generator(config), config.model, world.device)
    discriminator = place(build_discriminator(config.model), config.model, world.device)
    perceptual = PerceptualLoss(config.model).to(world.device) if config.loss.perceptual_weight else None
    if perceptual:
        _autocast(perceptual, config, world)
    engines = Engines(wrap(generator, config, world), wrap(discriminator, config, world), perceptual)
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
    optimizer = torch.optim.Adam(_parameter_groups(network), lr=config.train.lr, betas=config.train.betas, fused=True)
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config=deepspeed_config(config, world.size), dist_init_required=False
    )
    if config.train.channels_last and not config.deepspeed.zero_stage:  # above, weights are views of flat tensors
        engine.module.to(memory_format=torch.channels_last)  # not earlier: DeepSpeed broadcasts contiguous weights
    if config.train.compile:
        engine.module.compile()
    return Engine(engine, config, world)


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
