"""LPIPS and FID, with weights from local files. Nothing is downloaded, and no file of the user's is unpickled."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hpc_recolor.models.foreign_weights import read_weights
from hpc_recolor.runtime.errors import UserError

FEATURES = 2048


@dataclass(frozen=True)
class Perceptual:
    """The networks behind LPIPS and FID, on one device; None for what is not measured."""

    lpips: nn.Module | None = None
    inception: nn.Module | None = None

    @classmethod
    def load(cls, lpips_weights: Path | None, fid_weights: Path | None, device: torch.device) -> "Perceptual":
        """lpips_weights: torchvision's AlexNet; fid_weights: torch-fidelity's Inception-v3; both .pth or .safetensors.

        Raises UserError if a file is missing or contains something else, or if torch-fidelity is not installed.
        """
        lpips = _build_lpips(lpips_weights).to(device) if lpips_weights else None
        inception = _build_inception(fid_weights).to(device) if fid_weights else None
        return cls(lpips, inception)

    @torch.no_grad()
    def distances(self, images_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> dict[str, Tensor]:
        """LPIPS of each image by its key, float64 (N,); empty if it is not measured. Both: uint8 (N,H,W,3)."""
        if not self.lpips:
            return {}
        both = (_planes(rgb).float() / 127.5 - 1 for rgb in (images_u8_NHWC, originals_u8_NHWC))
        return {"lpips": self.lpips(*both).double().flatten()}

    @torch.no_grad()
    def features(self, images_u8_NHWC: Tensor) -> Tensor | None:
        """The features that FID compares, float32 (N,2048) on the CPU; None if it is not measured."""
        return self.inception(_planes(images_u8_NHWC)).cpu() if self.inception else None


def new_fid(num_features: int) -> Any:
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
