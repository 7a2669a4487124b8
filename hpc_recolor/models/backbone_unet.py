"""U-Net whose encoder is a pretrained backbone, and whose decoder predicts color at a fraction of the side."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_recolor.config import ModelConfig, NormName
from hpc_recolor.models.backbone import STRIDES, Backbone
from hpc_recolor.models.color_bins import ColorBins
from hpc_recolor.models.fused import FusedSequential
from hpc_recolor.models.norm import make_norm
from hpc_recolor.models.shapes import HALVINGS

# Channels of the decoder over model.width, by the stride of its features.
WIDTHS = {32: 2.5, 16: 2.0, 8: 1.5, 4: 1.0, 2: 0.75, 1: 0.5}


class BackboneUNet(nn.Module):
    """Maps a condition (N,1,H,W) to an output (N,C,H,W) in [-1, 1]; H and W must be multiples of `multiple`.

    The output is predicted at 1/s of the side that the backbone sees, s = model.chroma_stride, and enlarged bilinearly:
    people see color coarsely (chroma subsampling, ITU-R BT.601), and a decoder at full size would cost more than the
    backbone.

    bins: with model.bin_width, what the network predicts distributions over, and decodes to the output; else None.
    """

    multiple = 2 ** HALVINGS["backbone_unet"]

    def __init__(self, inputs: int, outputs: int, model: ModelConfig, pretrained: bool) -> None:
        super().__init__()
        self.chroma_stride: int = model.chroma_stride
        self.backbone_scale = model.backbone_scale
        self.mirrored = model.mirrored
        self.backbone = Backbone(model, pretrained)
        channels = {stride: max(1, int(times * model.width)) for stride, times in WIDTHS.items()}
        innermost = STRIDES[-1]
        # Not normalized, as in pix2pix: at 32 px it has one pixel, of which there are no statistics.
        self.innermost = nn.Sequential(
            nn.Conv2d(self.backbone.channels[innermost], channels[innermost], 3, padding=1),
            nn.ReLU(),
            nn.Dropout(model.dropout),
        )
        self.up = nn.ModuleDict()
        for stride in (stride for stride in channels if self.chroma_stride <= stride < innermost):
            skipped = self.backbone.channels.get(stride, 0) + (inputs if stride == self.chroma_stride else 0)
            self.up[str(stride)] = _Up(channels[2 * stride], skipped, channels[stride], model)
        self.bins = ColorBins(model.bin_width, model.temperature) if model.bin_width else None
        last = nn.Conv2d(channels[self.chroma_stride], len(self.bins.centers) if self.bins else outputs, 3, padding=1)
        self.head = nn.Sequential(last) if self.bins else nn.Sequential(last, nn.Tanh())

    def forward(self, condition: Tensor, seen: tuple[int, int] | None = None, *, as_logits: bool = False) -> Tensor:
        """Condition (N,inputs,H,W) in [-1, 1] to output (N,outputs,H,W) in [-1, 1].

        seen: sides that the backbone sees it at, multiples of `multiple`; by default backbone_scale times its own.
        as_logits: the logits (N,K,h,w) over `bins` instead, which `decode` makes an output of.
        """
        if as_logits:
            return self._predict_small(condition, seen)
        if self.training or not self.mirrored:
            return self._predict(condition, seen)
        return (self._predict(condition, seen) + self._predict(condition.flip(3), seen).flip(3)) / 2

    def decode(self, small: Tensor, size: torch.Size) -> Tensor:
        """What the head predicts, (N,K,h,w), to an output (N,outputs,H,W) of this size."""
        if self.bins is not None:
            small = self.bins.decode(small)
        if self.backbone_scale == 1 and self.chroma_stride == 1:
            return small
        return F.interpolate(small, size=size, mode="bilinear")

    def _predict(self, condition: Tensor, seen: tuple[int, int] | None) -> Tensor:
        return self.decode(self._predict_small(condition, seen), condition.shape[-2:])

    def _predict_small(self, condition: Tensor, seen: tuple[int, int] | None) -> Tensor:
        if self.backbone_scale != 1:
            condition = F.interpolate(condition, size=seen or self._nearest(condition.shape[-2:]), mode="bilinear")
        features = dict(zip(self.backbone.channels, self.backbone(condition), strict=True))
        output = self.innermost(features[STRIDES[-1]])
        for name, up in self.up.items():
            stride = int(name)
            skips = [features[stride]] if stride in features else []
            if stride == self.chroma_stride:
                skips.append(F.avg_pool2d(condition, stride))
            output = up(output, skips)
        small: Tensor = self.head(output)
        return small

    def _nearest(self, size: torch.Size) -> tuple[int, int]:
        """The multiples of `multiple` that are nearest to backbone_scale times the sides."""
        height, width = (max(1, round(side * self.backbone_scale / self.multiple)) for side in size)
        return self.multiple * height, self.multiple * width


class _Up(nn.Module):
    """Doubles the side of features, joins the skipped ones, and mixes them in two convolutions."""

    def __init__(self, before: int, skipped: int, after: int, model: ModelConfig) -> None:
        super().__init__()
        # Interpolation leaves no checkerboard, transposed convolution does (Odena et al. 2016, Distill,
        # doi:10.23915/distill.00003).
        self.enlarge = (
            nn.Upsample(scale_factor=2, mode="nearest")
            if model.upsampling == "interpolate"
            else nn.ConvTranspose2d(before, before, 4, stride=2, padding=1, bias=False)
        )
        self.layers = FusedSequential(
            *_convolution(before + skipped, after, model.norm), *_convolution(after, after, model.norm)
        )

    def forward(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """(N,before,h,w) and skips (N,C,2h,2w), together of `skipped` channels, to (N,after,2h,2w)."""
        result: Tensor = self.layers(torch.cat((self.enlarge(features), *skips), dim=1))
        return result


def _convolution(before: int, after: int, norm: NormName) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), make_norm(norm, after), nn.ReLU()]
