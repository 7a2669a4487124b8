"""Settings that were asked for and decide nothing, since another setting, or the device, switches them off."""

from collections.abc import Callable

from hpc_recolor.config import Config
from hpc_recolor.config_file import leaves

# The keys that idle where the condition holds, and what switches them off. on_gpu: the device that is trained on.
Condition = Callable[[Config, bool], bool]
RULES: tuple[tuple[tuple[str, ...], Condition, str], ...] = (
    (
        (
            *("model.backbone_norm", "model.backbone_scale", "model.upsampling", "model.mirrored"),
            *("model.chroma_stride", "train.backbone_lr_scale", "train.freeze_backbone_images"),
        ),
        lambda config, on_gpu: config.model.generator != "backbone_unet",
        "model.generator={config.model.generator} has no backbone",
    ),
    (
        ("model.backbone", "model.backbone_weights"),
        lambda config, on_gpu: config.model.generator != "backbone_unet" and not config.loss.perceptual_weight,
        "neither model.generator={config.model.generator} nor a loss looks at a backbone",
    ),
    (
        ("loss.discriminator_from", "loss.adversarial_from", "train.adversarial_lr_scale"),
        lambda config, on_gpu: config.loss.adversarial == "none",
        "loss.adversarial=none",
    ),
    (
        ("model.temperature",),
        lambda config, on_gpu: not config.model.bin_width,
        "model.bin_width=0",
    ),
    (
        ("loss.rebalancing",),
        lambda config, on_gpu: config.loss.reconstruction != "bins",
        "loss.reconstruction={config.loss.reconstruction}",
    ),
    (
        ("loss.reconstruction",),
        lambda config, on_gpu: config.loss.l1_weight == 0,
        "loss.l1_weight=0",
    ),
    (
        ("data.held_out_count",),
        lambda config, on_gpu: config.data.held_out is not None,
        "data.held_out={config.data.held_out} holds the photographs to validate on",
    ),
    (
        ("data.threads",),
        lambda config, on_gpu: config.data.cache != "none",
        "data.cache={config.data.cache} keeps all samples, once they are loaded",
    ),
    (
        ("train.tf32", "train.graph", "train.fit_memory"),
        lambda config, on_gpu: not on_gpu,
        "it concerns GPUs, and this is a CPU",
    ),
)
HOST_CACHE = "data.cache=device: samples are kept in the host's memory, which is the CPU's"


def idle_settings(config: Config, on_gpu: bool) -> list[str]:
    """A line for each setting that differs from its default and decides nothing in this run."""
    asked, default = dict(leaves(config.model_dump())), dict(leaves(Config().model_dump()))
    lines = [
        f"{key}={asked[key]} has no effect: {why.format(config=config)}"
        for keys, idles, why in RULES
        if idles(config, on_gpu)
        for key in keys
        if asked[key] != default[key]
    ]
    return [*lines, HOST_CACHE] if config.data.cache == "device" and not on_gpu else lines
