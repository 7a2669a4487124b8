"""U-Net: an encoder and a decoder with skip connections at each level (arXiv:1611.07004)."""

from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import NormName
from hpc_recolor.models.fused import FusedSequential, fused, fuses
from hpc_recolor.models.norm import make_norm

MAX_DEPTH = 7


def depth_for(size: int) -> int:
    """Levels for images of side `size` [pixels]: as often as it can be halved, at most 7 (128 px to 1 px)."""
    depth = 0
    while depth < MAX_DEPTH and size % 2 == 0:
        size //= 2
        depth += 1
    return depth


class UNet(nn.Module):
    """Maps a condition (N,1,H,W) to an output (N,C,H,W) in [-1, 1]; H and W must be multiples of `multiple`."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        self.multiple = 2**depth
        channels = [width * min(2**level, 8) for level in range(depth)]
        self.down = nn.ModuleList()
        for level in range(depth):
            before = inputs if level == 0 else channels[level - 1]
            self.down.append(_down(before, channels[level], level == 0, level == depth - 1, norm))
        self.up = nn.ModuleList()
        for level in reversed(range(depth)):
            innermost = level == depth - 1
            before = channels[level] * (1 if innermost else 2)
            if level == 0:
                self.up.append(
                    nn.Sequential(nn.Identity(), nn.ConvTranspose2d(before, outputs, 4, stride=2, padding=1), nn.Tanh())
                )
            else:
                after = channels[level - 1]
                # as in pix2pix: dropout in the widest levels except the innermost
                share = dropout if after == 8 * width and not innermost else 0.0
                self.up.append(_up(before, after, innermost, share, norm))

    def forward(self, condition: Tensor) -> Tensor:
        """Condition (N,inputs,H,W) in [-1, 1] to output (N,outputs,H,W) in [-1, 1]."""
        features = [condition]
        for down in self.down:
            features.append(down(features[-1]))
        output = features.pop()
        for up in self.up[:-1]:
            output = up(output, features.pop())
        result: Tensor = self.up[-1](output)
        return result


def activates_apart(tensor: Tensor) -> bool:
    """Whether features are activated before they are joined: on GPUs.

    BatchNorm's backward would else be given a part of a larger gradient, for which a GPU takes a slow generic kernel. A
    CPU does not, and there the two activations would cost 3 % of the network's time.
    """
    return tensor.is_cuda


def _down(before: int, after: int, outermost: bool, innermost: bool, norm: NormName) -> nn.Sequential:
    """Halves the side of activated features, and activates them, as the next level is given them, but the innermost."""
    layers: list[nn.Module] = [] if outermost else [nn.Identity()]  # for the names of weights, of before 0.2
    layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False))
    if not outermost and not innermost:
        layers.append(make_norm(norm, after))
    return FusedSequential(*layers, *([] if innermost else [nn.LeakyReLU(0.2)]))


def _up(before: int, after: int, innermost: bool, dropout: float, norm: NormName) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.ReLU() if innermost else nn.Identity(),  # the others are given what is activated already
        nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
        make_norm(norm, after),
    ]
    return _Up(*layers, *([nn.Dropout(dropout)] if dropout else []))


class _Up(nn.Sequential):
    """Doubles the side of features, joins the skipped ones, and activates both."""

    def forward(self, features: Tensor, skipped: Tensor) -> Tensor:  # type: ignore[override]
        """Features (N,C,h,w) and skipped ones (N,S,2h,2w), after leaky ReLU, to (N,S+D,2h,2w)."""
        layers: list[Any] = list(self)
        activate, enlarge, norm, *dropout = layers
        output = enlarge(activate(features))
        if fuses(norm, output):
            return fused(norm, output, 0.0, dropout[0].p if dropout else 0.0, skipped)
        for layer in (norm, *dropout):
            output = layer(output)
        # ReLU of a leaky ReLU is that of its input, and may follow dropout as well as stand before it.
        if activates_apart(output):
            return torch.cat((torch.relu(skipped), torch.relu(output)), dim=1)
        return torch.relu(torch.cat((skipped, output), dim=1))
