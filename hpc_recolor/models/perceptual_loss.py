"""Distance of images in what a pretrained network sees in them."""

from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import ColorName, ModelConfig
from hpc_recolor.models.backbone import feature_network
from recolor_kernels import lab_to_rgb


class PerceptualLoss(nn.Module):
    """Mean |difference| of the features of two images over the mean |feature| of the second, mean over the strides.

    The network is model.backbone with its pretrained weights, which never learn (Johnson, Alahi and Fei-Fei 2016,
    arXiv:1603.08155, with L1 in place of squares).
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.color: ColorName = model.color
        self.network: Any = feature_network(model, pretrained=True).eval().requires_grad_(False)
        statistics = self.network.pretrained_cfg
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in eval mode."""
        return self

    def forward(self, condition_N1HW: Tensor, prediction_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
        """The loss (); inputs as of `gan_step`."""
        with torch.no_grad():
            expected = self._features(condition_N1HW, target_NCHW)
        found = self._features(condition_N1HW, prediction_NCHW)
        ratios = [(one - two).abs().mean() / two.abs().mean() for one, two in zip(found, expected, strict=True)]
        return torch.stack(ratios).mean()

    def _features(self, condition: Tensor, colors: Tensor) -> list[Tensor]:
        rgb = colors if self.color == "rgb" else lab_to_rgb(condition, colors)
        features: list[Tensor] = self.network(((rgb + 1) / 2 - self.mean) / self.std)
        return features
