"""A whole training step as one body that the host need not wait for: no read of the device, no branch on its data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.agreement import Flags, Verdict
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine.engine import Engines
from hpc_recolor.training.schedule import Phase
from hpc_recolor.training.step import StepLosses, discriminator_only_step, gan_step


class DeviceStep:
    """Both updates, the average, and what follows from a step that was not finite. All ranks use it together.

    All tensors that outlive a step keep their addresses. verdict: float tensor (6,), the last step's Verdict.
    losses_sum: float tensor (4,), to which a good step adds its losses.
    """

    def __init__(
        self, config: Config, world: World, engines: Engines, average: MovingAverage | None, losses_sum: Tensor
    ) -> None:
        self.config, self.world = config, world
        self._loss_alone = config.loss.model_copy(update={"adversarial": "none"})
        self.engines, self.average, self.losses_sum = engines, average, losses_sum
        self.flags = torch.zeros(len(Flags._fields), device=world.device)
        self.average_share = torch.zeros((), device=world.device)
        self.verdict = torch.zeros(len(Verdict._fields), device=world.device)

    def set_inputs(self, flags: Flags, average_share: float) -> None:
        """Set what the next step takes from the host, beside the learning rate.

        flags: of this rank. average_share: see MovingAverage.
        """
        self.flags.copy_(_on_way(torch.tensor(flags, dtype=torch.float32), self.world.device))
        self.average_share.fill_(average_share)

    def body(self, rgb_u8_NHWC: Tensor, phase: Phase, picks: Tensor | None = None) -> None:
        """Train on this rank's share of a batch, uint8 (N,H,W,3), on the device. picks: see Batch."""
        memory_format = torch.channels_last if self.config.train.channels_last else torch.contiguous_format
        condition, target = make_pair(rgb_u8_NHWC, self.config.model.color, memory_format=memory_format, picks=picks)
        losses = self._update(condition, target, phase)
        self._agree()
        self._settle(torch.stack(losses))

    @contextmanager
    def without_effect(self) -> Iterator[None]:
        """Within it, steps change nothing but `verdict`: neither networks nor random states, on any rank."""
        device = self.world.device
        for engine in self.engines:
            engine.gate.fill_(torch.nan)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
        for engine in self.engines:
            engine.gate.fill_(1.0)

    def _update(self, condition: Tensor, target: Tensor, phase: Phase) -> StepLosses:
        accumulate = self.config.train.accumulate
        if phase is Phase.DISCRIMINATOR:
            return discriminator_only_step(self.engines, condition, target, self.config.loss, accumulate)
        loss = self.config.loss if phase is Phase.BOTH else self._loss_alone
        return gan_step(self.engines, condition, target, loss, accumulate)

    def _agree(self) -> None:
        skipped = torch.stack([self.engines.discriminator.skipped, self.engines.generator.skipped])
        torch.cat([self.flags, skipped], out=self.verdict)
        if self.world.size > 1:
            dist.all_reduce(self.verdict, dist.ReduceOp.MAX)

    def _settle(self, losses: Tensor) -> None:
        """Take a bad step back, or count a good one."""
        discriminator_skipped, generator_skipped = self.verdict[len(self.flags) :].bool().unbind()
        bad = discriminator_skipped | generator_skipped
        self.engines.statistics.take_back(bad)
        self.losses_sum += torch.where(bad, 0, losses)
        if self.average:
            self.average.update(torch.where(bad, 0, self.average_share))
        self.engines.adapt_loss_scales(discriminator_skipped, generator_skipped)


def _on_way(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on its way to the device, for which the host does not wait."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
