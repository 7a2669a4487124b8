"""LPIPS and FID, with weights from files that the user has. Nothing is downloaded, and no file of theirs unpickled."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hpc_recolor.runtime.errors import UserError

FEATURES = 2048


@dataclass(frozen=True)
class Perceptual:
    """The networks that judge pictures, on one device; None for what is not measured."""

    lpips: nn.Module | None = None
    inception: nn.Module | None = None

    @classmethod
    def load(cls, lpips_weights: Path | None, fid_weights: Path | None, device: torch.device) -> "Perceptual":
        """lpips_weights: torchvision's AlexNet; fid_weights: torch-fidelity's Inception-v3; both .pth or .safetensors.

        Raises UserError if a file is not there or holds something else, or if torch-fidelity is missing.
        """
        lpips = _build_lpips(lpips_weights).to(device) if lpips_weights else None
        inception = _build_inception(fid_weights).to(device) if fid_weights else None
        return cls(lpips, inception)

    @torch.no_grad()
    def distances(self, pictures_u8_NHWC: Tensor, originals_u8_NHWC: Tensor) -> dict[str, Tensor]:
        """LPIPS of each picture, float64 (N,), where it is measured."""
        if not self.lpips:
            return {}
        both = (_planes(rgb).float() / 127.5 - 1 for rgb in (pictures_u8_NHWC, originals_u8_NHWC))
        return {"lpips": self.lpips(*both).double().flatten()}

    @torch.no_grad()
    def features(self, pictures_u8_NHWC: Tensor) -> Tensor | None:
        """What FID compares of each picture, float32 (N,2048) on the CPU, where it is measured."""
        return self.inception(_planes(pictures_u8_NHWC)).cpu() if self.inception else None


def new_fid(numbers: int) -> Any:
    """torchmetrics' FID of features (N,numbers), for one process: update(features, real=...), then compute()."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=_Features(numbers), sync_on_compute=False)


class _Features(nn.Module):
    """In place of the network that makes features: they come in."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """A state dict by name from a .safetensors file, or a .pth one that holds nothing but tensors.

    key: what the user named the file by. Raises UserError if it is not there or holds anything else.
    """
    if not file.is_file():
        raise UserError(f"{key}={file}: no such file; name one with the weights, it is not downloaded")
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else _read_pth(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{key}={file}: cannot be read ({error}); fetch it again") from None
    except Exception:  # whatever PyTorch raises over what is no file of tensors
        raise UserError(f"{key}={file}: is no file of tensors alone; name a .pth or .safetensors of weights") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{key}={file}: holds no state dict; name a file with weights by name")
    return weights


def _read_pth(file: Path) -> Any:
    """By PyTorch's own reader of downloaded weights, told that this one is there already, and to read tensors alone."""
    with TemporaryDirectory() as folder:
        Path(folder, "weights.pth").symlink_to(file.resolve())
        return torch.hub.load_state_dict_from_url(
            "file:///weights.pth", model_dir=folder, map_location="cpu", weights_only=True
        )


def _build_lpips(file: Path) -> nn.Module:
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # the public class would download AlexNet

    network = _NoTrainLpips(net="alex", pnet_rand=True)
    weights = read_weights(file, "lpips-weights")
    backbone: nn.Module = network.net
    own = {name: f"features.{name.partition('.')[2]}" for name in backbone.state_dict()}
    wrong = [key for name, key in own.items() if _shape(weights, key) != backbone.state_dict()[name].shape]
    if wrong:
        raise UserError(
            f"lpips-weights={file}: is not torchvision's AlexNet: {wrong[0]} is missing or of another shape; name "
            "alexnet-owt-7be5be79.pth"
        )
    backbone.load_state_dict({name: weights[key] for name, key in own.items()})
    return network


def _build_inception(file: Path) -> nn.Module:
    if not find_spec("torch_fidelity"):
        raise UserError(f"fid-weights={file}: FID needs torch-fidelity; pip install 'hpc-recolor[fid]'")
    from torchmetrics.image.fid import NoTrainInceptionV3

    weights = read_weights(file, "fid-weights")
    with TemporaryDirectory() as folder:  # torch-fidelity would unpickle anything: it gets a file of ours
        clean = Path(folder, "weights.pth")
        torch.save(weights, clean)
        try:
            return NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(clean))
        except RuntimeError:
            raise UserError(
                f"fid-weights={file}: is not torch-fidelity's Inception-v3; name its weights-inception-2015-12-05-*.pth"
            ) from None


def _shape(weights: dict[str, Tensor], key: str) -> torch.Size | None:
    return weights[key].shape if key in weights else None


def _planes(rgb_u8_NHWC: Tensor) -> Tensor:
    return rgb_u8_NHWC.permute(0, 3, 1, 2)
