"""The pix2pix step in plain PyTorch, as a reference for the results and the speed of the engines' step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_recolor.config import Config
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.engine import Engine, Engines


class PlainStep:
    """Two networks and two Adams, trained as in pix2pix (arXiv:1611.07004): BCE with logits, weighted L1."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        lr: float,
        betas: tuple[float, float],
        l1_weight: float,
    ) -> None:
        self.generator, self.discriminator, self.l1_weight = generator, discriminator, l1_weight
        self.frozen_discriminator = (
            discriminator.module if isinstance(discriminator, DistributedDataParallel) else discriminator
        )
        self.generator_adam = torch.optim.Adam(generator.parameters(), lr, betas, fused=True)
        self.discriminator_adam = torch.optim.Adam(discriminator.parameters(), lr, betas, fused=True)

    @classmethod
    def beside(cls, engines: Engines, config: Config, world: World) -> "PlainStep":
        """A twin of the engines (ZeRO 0): other networks with the same weights, in DistributedDataParallel on several
        ranks."""

        def twin(network: nn.Module, engine: Engine) -> nn.Module:
            network.to(world.device).load_state_dict(engine.module.state_dict())
            return DistributedDataParallel(network, broadcast_buffers=False) if world.size > 1 else network

        generator = twin(build_generator(config.model, config.data.size), engines.generator)
        discriminator = twin(build_discriminator(config.model), engines.discriminator)
        return cls(generator, discriminator, config.train.lr, config.train.betas, config.loss.l1_weight)

    def __call__(self, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """One step on condition (N,1,H,W) and target (N,C,H,W), in [-1, 1].

        Returns the losses of the discriminator and of the generator (), before the updates.
        """
        fake = self.generator(condition)

        self.discriminator_adam.zero_grad()
        on_fake = self.discriminator(condition, fake.detach())
        on_real = self.discriminator(condition, target)
        fake_loss = F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
        real_loss = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
        discriminator_loss = 0.5 * (real_loss + fake_loss)
        discriminator_loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_adam.step()

        self.generator_adam.zero_grad()
        self.frozen_discriminator.requires_grad_(False)
        logits = self.frozen_discriminator(condition, fake)
        adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        generator_loss = adversarial + self.l1_weight * F.l1_loss(fake, target)
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_adam.step()
        self.frozen_discriminator.requires_grad_(True)
        return discriminator_loss.detach(), generator_loss.detach()
