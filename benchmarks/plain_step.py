"""The pix2pix step in plain PyTorch, as a reference for the results and the speed of the engines' step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_recolor.config import Config, PrecisionName
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.engine import Engine, Engines

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PlainStep:
    """Two networks and two Adams, trained as in pix2pix (arXiv:1611.07004): BCE with logits, weighted L1.

    frozen_discriminator: shares its weights with the discriminator; the generator learns from it. precision: of forward
    passes, by autocast; fp16 with torch's loss scaling.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        frozen_discriminator: nn.Module,
        lr: float,
        betas: tuple[float, float],
        l1_weight: float,
        precision: PrecisionName = "fp32",
    ) -> None:
        self.generator, self.discriminator, self.l1_weight = generator, discriminator, l1_weight
        self.frozen_discriminator, self.precision = frozen_discriminator, precision
        self.generator_adam = torch.optim.Adam(generator.parameters(), lr, betas, fused=True)
        self.discriminator_adam = torch.optim.Adam(discriminator.parameters(), lr, betas, fused=True)
        self.device_type = next(generator.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "fp16")

    @classmethod
    def beside(cls, engines: Engines, config: Config, world: World, *, compiled: bool = False) -> "PlainStep":
        """A twin of the engines (ZeRO 0): other networks with the same weights, in the config's precision and layout,
        in DistributedDataParallel on several ranks. compiled: by torch.compile, as its documentation recommends."""

        def twin(network: nn.Module, engine: Engine) -> nn.Module:
            network.to(world.device).load_state_dict(engine.module.state_dict())
            return network.to(memory_format=torch.channels_last) if config.train.channels_last else network

        def prepared(network: nn.Module) -> Any:
            shared = DistributedDataParallel(network, broadcast_buffers=False) if world.size > 1 else network
            return torch.compile(shared) if compiled else shared

        generator = twin(build_generator(config.model, config.data.size), engines.generator)
        discriminator = twin(build_discriminator(config.model), engines.discriminator)
        return cls(
            prepared(generator),
            prepared(discriminator),
            torch.compile(discriminator) if compiled else discriminator,  # type: ignore[arg-type]
            config.train.lr,
            config.train.betas,
            config.loss.l1_weight,
            config.train.precision,
        )

    def __call__(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One step on condition (N,1,H,W) and target (N,C,H,W), in [-1, 1].

        Returns the losses of the discriminator and of the generator (), before the updates.
        """
        fake = self._forward(self.generator, condition)

        self.discriminator_adam.zero_grad()
        on_fake = self._forward(self.discriminator, condition, fake.detach())
        on_real = self._forward(self.discriminator, condition, target)
        fake_loss = F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
        real_loss = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
        discriminator_loss = 0.5 * (real_loss + fake_loss)
        self._update(discriminator_loss, self.discriminator_adam)

        self.generator_adam.zero_grad()
        self.frozen_discriminator.requires_grad_(False)
        logits = self._forward(self.frozen_discriminator, condition, fake)
        adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        generator_loss = adversarial + self.l1_weight * F.l1_loss(fake, target)
        self._update(generator_loss, self.generator_adam)
        self.scaler.update()
        self.frozen_discriminator.requires_grad_(True)
        return discriminator_loss.detach(), generator_loss.detach()

    def _forward(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self.device_type, dtype, enabled=dtype is not None):
            output: Tensor = network(*inputs)
        return output.float()

    def _update(self, loss: Tensor, adam: torch.optim.Adam) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(adam)
