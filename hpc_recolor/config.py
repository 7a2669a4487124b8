"""The typed config of a run, and the only reader and writer of YAML."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hpc_recolor.runtime.errors import UserError

ColorName = Literal["rgb", "lab"]
GeneratorName = Literal["unet", "autoencoder", "resnet"]
NormName = Literal["batch", "sync_batch", "instance"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
AdversarialName = Literal["bce", "l1", "mse", "none"]
FitName = Literal["stretch", "crop", "pad"]

# Input sides must be multiples of these, so that what is halved comes back to the same size.
SIZE_MULTIPLE: dict[GeneratorName, int] = {"unet": 32, "autoencoder": 16, "resnet": 4}

# A run may go on with other values of these. Everything else would make it another run.
FREE_TO_CHANGE = (
    "run.name",
    "run.folder",
    "data.shards",  # moved; its fingerprint says whether it is the same
    "data.cache",
    "data.threads",
    "data.max_unreadable",
    "train.epochs",
    "train.threads",
    "train.compile",
    "train.snapshots",
    "train.max_bad_steps",
    "train.hang_s",
    "train.silence_s",
    "deepspeed",
    "checkpoint",
    "tracking",
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    name: str = Field(
        "train",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="Name of the run: its folder inside run.folder. Letters, digits, '.', '_' and '-'.",
    )
    folder: Path = Field(Path("runs"), description="Folder that holds the run folders.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of weights, sample order, flips and dropout [0 to below 2^32]."
    )


class DataConfig(Section):
    photos: Path | None = Field(None, description="Folder of photographs to learn from (nested folders too).")
    shards: Path | None = Field(
        None, description="Data set that `prepare` wrote, in place of photos: learns from train, measures on val."
    )
    held_out: Path | None = Field(
        None,
        description="Folder of photographs to measure on. Without it, held_out_count of data.photos are set aside.",
    )
    held_out_count: int = Field(
        16,
        ge=1,
        description="Photographs set aside by run.seed, without held_out and a val split [photographs, 1 or more].",
    )
    size: int = Field(128, ge=32, le=4096, description="Side that photographs are resized to [pixels, 32 to 4096].")
    fit: FitName = Field(
        "stretch", description="How a photograph becomes a square: stretched, cut at the center, or padded with black."
    )
    flip_horizontal: bool = Field(True, description="Mirror half of the samples left to right.")
    flip_vertical: bool = Field(True, description="Mirror half of the samples top to bottom.")
    loader: Literal["auto", "dali", "torch"] = Field(
        "auto", description="What decodes: DALI, or torch's DataLoader with Pillow; auto takes DALI if it is installed."
    )
    cache: Literal["none", "host", "device"] = Field(
        "none", description="Decode all samples once and keep them on each rank, in memory or on the GPU."
    )
    threads: int = Field(2, ge=1, description="The loader's threads or workers on each rank [threads, 1 or more].")
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="A run stops if more photographs than this share, and more than one, turn unreadable [0 to 1].",
    )


class ModelConfig(Section):
    generator: GeneratorName = Field("unet", description="Architecture of the generator.")
    color: ColorName = Field("lab", description="What is learned: gray to RGB, or Lab's L to ab.")
    width: int = Field(
        64,
        ge=1,
        le=1024,
        description="Channels of both networks' first layer; the others scale [channels, 1 to 1024].",
    )
    norm: NormName = Field(
        "batch", description="Normalization: over the batch of a rank, over all ranks' batches, or over each image."
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Probability that the generator drops a value, in its inner layers [0 to below 1]."
    )


class LossConfig(Section):
    l1_weight: float = Field(100.0, ge=0, description="Weight of L1 beside the adversarial loss [0 or more].")
    adversarial: AdversarialName = Field(
        "bce",
        description="Criterion on the discriminator's logits: cross-entropy, mean |sigmoid - label|, least squares; "
        "none: L1 alone, without a discriminator's word.",
    )


class TrainConfig(Section):
    epochs: int = Field(45, ge=1, description="Passes over the photographs [epochs, 1 or more].")
    batch_size: int = Field(16, ge=1, description="Images in a step, over all ranks together [images, 1 or more].")
    lr: float = Field(
        2e-4, gt=0, description="Adam's learning rate, both networks: constant, then linear to zero [above 0]."
    )
    lr_constant: float = Field(
        0.5, ge=0, le=1, description="Share of the run with constant learning rate, before it falls [0 to 1]."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.5, 0.999), description="Adam's decay rates of the first and second moment [each 0 to below 1]."
    )
    precision: PrecisionName = Field(
        "fp32",
        description="What forward passes compute in (autocast); weights and moments stay float32. fp16 scales losses.",
    )
    accumulate: int = Field(
        1, ge=1, description="Parts that a rank's share of a batch is computed in, to save memory [parts, 1 or more]."
    )
    clip_norm: float = Field(
        0.0, ge=0, description="Longest gradient of each network; longer ones are scaled to it [norm, 0: none]."
    )
    ema_half_life: int = Field(
        10_000,
        ge=0,
        description="Half-life of the average of the generator's weights that is measured and exported; at most a "
        "twentieth of what was seen [images, 0: none].",
    )
    snapshots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Epochs after which a checkpoint is made that is never removed [epochs]."
    )
    compile: bool = Field(False, description="Compile both networks with torch.compile.")
    channels_last: bool = Field(False, description="Keep pictures and weights channels last, as tensor cores like it.")
    max_bad_steps: int = Field(
        20, ge=1, description="A run stops after so many steps in a row with losses that are not finite [steps]."
    )
    silence_s: float = Field(30.0, gt=5, description="A rank that gives no sign for so long is taken for dead [s].")
    hang_s: float = Field(900.0, gt=0, description="A run whose ranks make no progress for so long is ended [s].")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train; auto takes a GPU if any.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each rank; by default its share of the cores [threads, 1 or more]."
    )


class DeepSpeedConfig(Section):
    zero_stage: int = Field(
        0,
        ge=0,
        le=3,
        description="What ranks share: 0 nothing, 1 moments, 2 gradients too, 3 weights too [stage, 0 to 3].",
    )
    config: Path | None = Field(None, description="JSON file for DeepSpeed, with what is not said here.")


class CheckpointConfig(Section):
    every_s: float = Field(300.0, gt=0, description="Time between two checkpoints [s].")
    every_images: int = Field(
        10_000, ge=1, description="Images between two checkpoints; the last step always makes one [images, 1 or more]."
    )
    keep: int = Field(
        2, ge=1, description="Newest checkpoints that are kept, beside train.snapshots [checkpoints, 1 or more]."
    )
    background: bool = Field(
        True, description="Write beside training, from a copy in memory, where there is room for one."
    )


class TrackingConfig(Section):
    log_every_steps: int = Field(10, ge=1, description="Steps between two readings of the losses [steps, 1 or more].")
    samples_every_images: int = Field(
        5_000,
        ge=1,
        description="Images between two measurements on held-out photographs, with pictures [images, 1 or more].",
    )
    samples: int = Field(8, ge=1, description="Held-out photographs in a picture of samples [rows, 1 or more].")
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder's logs/.")
    wandb: str | None = Field(
        None, description="Weights & Biases project to show the run in too; WANDB_MODE=offline keeps it in logs/."
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


def check_ranks(config: Config, ranks: int) -> None:
    """Raises UserError if so many ranks cannot share a batch evenly."""
    batch_size, parts = config.train.batch_size, config.train.accumulate
    if batch_size % ranks:
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by world size {ranks}: use a multiple of {ranks}"
        )
    if batch_size // ranks % parts:
        raise UserError(
            f"train.accumulate={parts} does not divide the {batch_size // ranks} images of a rank: use a divisor"
        )


def check_size(config: Config) -> None:
    multiple = SIZE_MULTIPLE[config.model.generator]
    if config.data.size % multiple:
        raise UserError(
            f"data.size={config.data.size} does not fit model.generator={config.model.generator}: "
            f"use a multiple of {multiple}"
        )
