"""ResNet: two strided convolutions, residual blocks, two transposed convolutions (arXiv:1603.08155)."""

from torch import Tensor, nn

from hpc_recolor.config import NormName
from hpc_recolor.models.fused import FusedSequential
from hpc_recolor.models.norm import make_norm
from hpc_recolor.models.shapes import HALVINGS

BLOCKS = 6
LEVELS = HALVINGS["resnet"]


class ResNet(nn.Module):
    """Maps a condition (N,1,H,W) to an output (N,C,H,W) in [-1, 1]; H and W must be multiples of `multiple`."""

    multiple = 2**LEVELS

    def __init__(self, inputs: int, outputs: int, width: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, width, 7, padding=3, padding_mode="reflect", bias=False)
        layers: list[nn.Module] = [first, make_norm(norm, width), nn.ReLU()]
        for level in range(LEVELS):
            before = width * 2**level
            layers += [nn.Conv2d(before, 2 * before, 3, stride=2, padding=1, bias=False)]
            layers += [make_norm(norm, 2 * before), nn.ReLU()]
        layers += [ResidualBlock(width * 2**LEVELS, norm, dropout) for _ in range(BLOCKS)]
        for level in reversed(range(LEVELS)):
            before = width * 2 ** (level + 1)
            layers += [nn.ConvTranspose2d(before, before // 2, 4, stride=2, padding=1, bias=False)]
            layers += [make_norm(norm, before // 2), nn.ReLU()]
        last = nn.Conv2d(width, outputs, 7, padding=3, padding_mode="reflect")
        self.layers = FusedSequential(*layers, last, nn.Tanh())

    def forward(self, condition: Tensor) -> Tensor:
        """Condition (N,inputs,H,W) in [-1, 1] to output (N,outputs,H,W) in [-1, 1]."""
        output: Tensor = self.layers(condition)
        return output


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection around them; keeps the shape (N,C,H,W)."""

    def __init__(self, channels: int, norm: NormName, dropout: float) -> None:
        super().__init__()

        def convolution() -> nn.Module:
            return nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)

        self.layers = FusedSequential(
            convolution(),
            make_norm(norm, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            convolution(),
            make_norm(norm, channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N,C,H,W) to features of the same shape."""
        result: Tensor = features + self.layers(features)
        return result
