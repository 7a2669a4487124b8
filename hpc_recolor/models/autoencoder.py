"""Autoencoder: a shallower generator with max pooling and no skip connections."""

from itertools import pairwise

from torch import Tensor, nn

from hpc_recolor.config import NormName
from hpc_recolor.models.fused import FusedSequential
from hpc_recolor.models.norm import make_norm
from hpc_recolor.models.shapes import HALVINGS

LEVELS = HALVINGS["autoencoder"]


class Autoencoder(nn.Module):
    """Maps a condition (N,1,H,W) to an output (N,C,H,W) in [-1, 1]; H and W must be multiples of `multiple`."""

    multiple = 2**LEVELS

    def __init__(self, inputs: int, outputs: int, width: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        channels = [inputs] + [width * 2**level for level in range(LEVELS)]
        encoder: list[nn.Module] = []
        for before, after in pairwise(channels):
            encoder += [nn.Conv2d(before, after, 3, padding=1, bias=False), make_norm(norm, after)]
            encoder += [nn.LeakyReLU(0.2), nn.MaxPool2d(2)]
        decoder: list[nn.Module] = [nn.Dropout(dropout)]
        for level in reversed(range(LEVELS)):
            after = width * 2 ** max(level - 1, 0)
            decoder += [nn.ConvTranspose2d(channels[level + 1], after, 4, stride=2, padding=1, bias=False)]
            decoder += [make_norm(norm, after), nn.ReLU()]
        self.encoder = FusedSequential(*encoder)
        self.decoder = FusedSequential(*decoder, nn.Conv2d(width, outputs, 3, padding=1), nn.Tanh())

    def forward(self, condition: Tensor) -> Tensor:
        """Condition (N,inputs,H,W) in [-1, 1] to output (N,outputs,H,W) in [-1, 1]."""
        output: Tensor = self.decoder(self.encoder(condition))
        return output
