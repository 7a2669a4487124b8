"""PatchGAN discriminator: classifies patches of 70x70 pixels as real or fake (arXiv:1611.07004, section 3.2.2)."""

import torch
from torch import Tensor, nn

from hpc_recolor.config import NormName
from hpc_recolor.models.fused import FusedSequential
from hpc_recolor.models.norm import make_norm


class PatchDiscriminator(nn.Module):
    """Maps a condition (N,1,H,W) and an image (N,C,H,W) to logits (N,1,h,w), one a patch; 14x14 at 128 px."""

    def __init__(self, inputs: int, width: int, norm: NormName) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [nn.Conv2d(before * width, after * width, 4, stride=stride, padding=1, bias=False)]
            layers += [make_norm(norm, after * width), nn.LeakyReLU(0.2)]
        self.layers = FusedSequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, condition: Tensor, image: Tensor) -> Tensor:
        """Condition (N,1,H,W) and real or generated target (N,C,H,W), both in [-1, 1], to logits (N,1,h,w)."""
        logits: Tensor = self.layers(torch.cat((condition, image), dim=1))
        return logits
