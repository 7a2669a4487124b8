"""Two networks, each with its Adam, trained without a read by the host. ZeRO 1 to 3 are in zero_engine.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import Config
from hpc_recolor.models.color_bins import ColorBins
from hpc_recolor.models.layout import in_channels_last
from hpc_recolor.models.perceptual_loss import PerceptualLoss
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.gradients import GradientAverage
from hpc_recolor.training.engine.statistics import Statistics

# Loss scaling as in torch.amp.GradScaler: halved after an overflow, doubled after STEPS_TO_DOUBLE steps without one.
FIRST_LOSS_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000

# Step time relative to ZeRO 0, by stage: `benchmarks.step`, two CPU ranks, U-Net of width 64, batch 4.
ZERO_SLOWDOWN = {1: 1.35, 2: 1.42, 3: 1.70}


class Engine:
    """A network and its Adam at ZeRO 0. All ranks use it together.

    No method reads a tensor of the device, so that the host runs ahead of it, and every tensor that outlives a step
    keeps its address. A step whose gradients are not finite on some rank changes nothing, on any rank.
    skipped: float tensor (), 1 if that was so in the last step, else 0. gate: float tensor (), 1; while it is NaN,
    every step is skipped. loss_scale: factor on losses in backward passes, float tensor (), 1 unless precision is fp16.
    """

    zero_stage = 0

    def __init__(self, module: Any, adam: torch.optim.Adam, config: Config, world: World) -> None:
        self.module, self.adam = module, adam
        self.precision, self.clip_norm = config.train.precision, config.train.clip_norm
        self.channels_last, self.accumulate = config.train.channels_last, config.train.accumulate
        self.device = world.device
        self.skipped, self._gradient_norm = (torch.zeros((), device=world.device) for _ in range(2))
        self.gate = torch.ones((), device=world.device)
        self.loss_scale = torch.full((), FIRST_LOSS_SCALE if self.precision == "fp16" else 1.0, device=world.device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=world.device)
        self._microbatch = 0
        self._start_moments()
        self._start(world)

    def _start(self, world: World) -> None:
        self._parameters: list[Tensor] = list(self.module.parameters())
        self._average = GradientAverage(self.module, world.size) if world.size > 1 else None
        # On CPUs Adam reads it as it would a number; GPUs take float32.
        dtype = torch.float64 if world.device.type == "cpu" else torch.float32
        for group in self.adam.param_groups:
            group["lr"] = torch.full((), group["lr"], dtype=dtype, device=world.device)
            group["capturable"] = world.device.type != "cpu"  # else torch refuses to capture its step
        self.adam._warned_capturable_if_run_uncaptured = True  # as warming up is
        self.adam.found_inf = self.skipped  # type: ignore[attr-defined]  # where it is 1, fused Adam changes nothing

    def __call__(self, *inputs: Tensor, **options: bool) -> Tensor:
        """A forward pass that the network learns from. options: of its forward. Returns float32."""
        return self._forward(self.module, *inputs, **options)

    def frozen_forward(self, *inputs: Tensor) -> Tensor:
        """A forward pass past DeepSpeed: gradients flow through to the inputs, but the network learns nothing from it
        if its parameters require no gradients. Returns float32."""
        return self._forward(self.module, *inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a 0-dimensional loss; at the last microbatch, average them over ranks."""
        if self.precision == "fp16":
            loss = loss * self.loss_scale
        if self.accumulate > 1:
            loss = loss / self.accumulate
        self._microbatch += 1
        if self._average:
            self._average.is_last_microbatch = self._microbatch == self.accumulate
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Update the weights, at the last microbatch of a step; does nothing at the others."""
        if self._microbatch < self.accumulate:
            return
        self._microbatch = 0
        if self._average:
            self._average.finish()
        self._check_gradients()
        self._update_weights()
        for parameter in self._parameters:
            parameter.grad = None

    def set_lr(self, lr: float, backbone_lr: float) -> None:
        """Set Adam's learning rate, and that of a pretrained backbone."""
        for group in self.adam.param_groups:
            group["lr"].fill_(backbone_lr if group.get("is_backbone") else lr)

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the last step's gradient, over all ranks' partitions, before clipping. Waits for the
        device."""
        return float(self._gradient_norm)

    def adapt_loss_scale(self, skipped: Tensor, held: Tensor) -> None:
        """Adapt the loss scale after a step, unless `held`. Both: bool tensors (), which must be the same on all
        ranks."""
        good_steps = torch.where(skipped, 0, self.good_steps + 1)
        grown = torch.where(good_steps % STEPS_TO_DOUBLE == 0, 2 * self.loss_scale, self.loss_scale)
        scale = torch.where(skipped, (self.loss_scale / 2).clamp_min(1.0), grown)
        self.good_steps.copy_(torch.where(held, self.good_steps, good_steps))
        self.loss_scale.copy_(torch.where(held, self.loss_scale, scale))

    def adam_parameters(self) -> list[Tensor]:
        """Tensors that Adam updates on this rank: the parameters (ZeRO 0), or flat float32 partitions of them."""
        return list(self.module.parameters())

    def publish_weights(self) -> None:
        """Copy Adam's flat partitions of all ranks into the network's weights. All ranks call it together."""

    def _forward(self, network: Any, *inputs: Tensor, **options: bool) -> Tensor:
        if self.channels_last:
            inputs = tuple(map(in_channels_last, inputs))
        output: Tensor = network(*inputs, **options)
        return output if self.precision == "fp32" else output.float()

    def _check_gradients(self) -> None:
        # Gradients are averaged by now, so all ranks agree.
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self.precision == "fp16":
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        self._gradient_norm.copy_(norm)
        self.skipped.copy_(torch.isfinite(norm).logical_not())
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_norm, norm)

    def _update_weights(self) -> None:
        self.adam.step()

    def _start_moments(self) -> None:
        """Create Adam's state as its first step would, so that it can be saved and restored before that."""
        for parameter in self.adam_parameters():
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


@dataclass(frozen=True)
class Engines:
    """The engines of generator and discriminator, and a frozen network that the generator learns from, if any.

    statistics: BatchNorm's, of both networks.
    """

    generator: Engine
    discriminator: Engine
    perceptual: PerceptualLoss | None = None
    statistics: Statistics = field(init=False)

    def __post_init__(self) -> None:
        networks: list[nn.Module] = [engine.module for engine in self]
        object.__setattr__(self, "statistics", Statistics(networks))

    def __iter__(self) -> Iterator[Engine]:
        return iter((self.generator, self.discriminator))

    @property
    def bins(self) -> ColorBins | None:
        """What the generator predicts distributions over, None if it predicts color itself."""
        bins: ColorBins | None = getattr(self.generator.module, "bins", None)
        return bins

    def items(self) -> Iterator[tuple[str, Engine]]:
        """Pairs of network name and engine, the generator first."""
        return iter((("generator", self.generator), ("discriminator", self.discriminator)))

    def set_lr(self, lr: float, backbone_scale: float = 1.0) -> None:
        """Set the learning rate of both optimizers. backbone_scale: factor on that of a pretrained backbone."""
        for engine in self:
            engine.set_lr(lr, lr * backbone_scale)

    def adapt_loss_scales(self, discriminator_skipped: Tensor, generator_skipped: Tensor) -> None:
        """Adapt the loss scales of fp16 after a step. Both: bool tensors (), the same on all ranks."""
        if self.generator.precision != "fp16":
            return
        forced = self.generator.gate.isnan()
        self.discriminator.adapt_loss_scale(discriminator_skipped, forced)
        # Else the generator was held back, whatever its own gradients were.
        self.generator.adapt_loss_scale(generator_skipped, discriminator_skipped | forced)

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
