"""Functions that tests run on several ranks: `python -m tests.support.workers NAME JSON_ARGUMENTS OUT`."""

import errno
import hashlib
import io
import json
import os
import sys
from contextlib import closing, redirect_stderr
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_recolor.config import Config, DataConfig, GeneratorName
from hpc_recolor.config_file import load_config
from hpc_recolor.data import batches, host_cache
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.sets import SampleSets, collect
from hpc_recolor.evaluation.validation_scores import score
from hpc_recolor.models.build import build_discriminator, build_generator
from hpc_recolor.models.color_bins import ColorBins
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.models.norm import CrossRankBatchNorm2d
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import World, gather, start, stop
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.signals import StopRequest
from hpc_recolor.training import device_step, fit_memory, validation
from hpc_recolor.training.agreement import Flags
from hpc_recolor.training.bin_weights import set_bin_weights
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.engine.deepspeed_engine import build_engines
from hpc_recolor.training.engine.engine import Engines
from hpc_recolor.training.photo_check import collect_photographs
from hpc_recolor.training.run_state import RunState
from hpc_recolor.training.schedule import Phase
from hpc_recolor.training.step import gan_step
from hpc_recolor.training.trainer import Trainer, train
from tests.support.training_runs import differences, make, networks, run_config, state, without_plots
from tests.support.training_runs import train as train_run

GENERATORS: tuple[GeneratorName, ...] = ("unet", "autoencoder", "resnet")


def small_config(**sections: dict[str, Any]) -> Config:
    """Networks of width 8 on 32 px, everything else by default or by `sections`."""
    base: dict[str, dict[str, Any]] = {
        "data": {"size": 32},
        "model": {"width": 8, "dropout": 0.0},
        "train": {"batch_size": 8, "device": "cpu", "threads": 1},
    }
    return load_config(None, {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})


def random_batch(step: int, config: Config, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step: condition and target, in [-1, 1], the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (config.train.batch_size, 3, config.data.size, config.data.size)
    both = torch.rand(shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)
    return both[:, :1], both[:, 1:]


def losses_of_steps(world: World, steps: int, generator: str, dtype: str, stage: int = 0) -> list[list[float]]:
    """Both networks' losses of each step, as means over ranks, with BatchNorm over all ranks."""
    model = {"width": 8, "dropout": 0.0, "norm": "sync_batch", "generator": generator}
    config = small_config(model=model, deepspeed={"zero_stage": stage})
    engines = build_engines(config, world)
    if dtype == "float64":
        to_float64(engines)
    share = config.train.batch_size // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    losses = []
    for step in range(steps):
        condition, target = random_batch(step, config, getattr(torch, dtype))
        mean = torch.stack(gan_step(engines, condition[mine], target[mine], config.loss)).double()
        torch.distributed.all_reduce(mean)
        losses.append((mean / world.size).tolist())
    return losses


def to_float64(engines: Engines) -> None:
    """DeepSpeed starts in float32 or less; before the first step the engines can still be widened."""
    for engine in engines:
        engine.module.double()
        for parameter in engine.adam_parameters():
            moments = engine.adam.state[parameter]
            moments |= {key: moments[key].double() for key in ("exp_avg", "exp_avg_sq")}


def bin_weights(world: World, photos: str, folder: str) -> list[float]:
    """The weights of bins by photographs."""
    config = run_config(photos, folder, **BINS)
    bins = ColorBins(config.model.bin_width, config.model.temperature)
    set_bin_weights(bins, config, collect(config, world).train, world)
    weights: list[float] = bins.weights.tolist()
    return weights


def cross_rank_norm(world: World) -> list[Any]:
    """Output, input gradient, parameter gradients and statistics of this rank's half of a batch."""
    batch = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    weights = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = CrossRankBatchNorm2d(3).double()
    share = 4 // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    features = batch[mine].clone().requires_grad_()
    output = norm(features)
    (output * weights[mine]).sum().backward()
    assert features.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    torch.distributed.all_reduce(norm.weight.grad)
    torch.distributed.all_reduce(norm.bias.grad)
    parts = (output, features.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    return [part.detach().tolist() for part in parts if part is not None]


def scores(world: World) -> list[dict[str, Any]]:
    """Scores of a generator on three photographs, and on one, which leaves other ranks none."""
    config = small_config(model={"width": 4, "norm": "instance"})
    torch.manual_seed(0)
    generator = build_generator(config.model, config.data.size).eval()
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    shares = [images[:count][world.rank :: world.size] for count in (3, 1)]
    discriminator = build_discriminator(config.model).eval()
    found = [score(generator, discriminator, share, "lab", config.loss, world) for share in shares]
    return [asdict(scores) for scores in found if scores]


BACKBONE: dict[str, dict[str, Any]] = {
    "model": {"generator": "backbone_unet"},
    "train": {"backbone_lr_scale": 0.1, "freeze_backbone_images": 32},
}

BINS: dict[str, dict[str, Any]] = {
    "model": {"generator": "backbone_unet", "bin_width": 12},
    "loss": {"reconstruction": "bins", "l1_weight": 3.0},
}

# Stage, color, sections of the config, and the step of 6 that the run is stopped in; the end of step 2 is an epoch's.
STOPPED_RUNS: dict[str, tuple[int, str, dict[str, dict[str, Any]], int]] = {
    f"stage {stage}, {color}, step {step}": (stage, color, {}, step)
    for stage in (0, 1, 2, 3)
    for color, step in (("lab", 4), ("rgb", 2))
} | {
    "after the first step": (0, "lab", {}, 0),
    "half the batch at a time": (2, "lab", {"train": {"accumulate": 2, "batch_size": 8}}, 3),
    "fp16": (0, "lab", {"train": {"precision": "fp16", "batch_size": 8}}, 3),
}
STOPPED_RUNS |= {f"a backbone that starts to learn, stage {stage}": (stage, "lab", BACKBONE, 3) for stage in (0, 3)}
STOPPED_RUNS |= {"bins": (0, "lab", BINS, 3)}


def stopped_runs(world: World, photos: str, folder: str) -> dict[str, list[str]]:
    """For every run of STOPPED_RUNS: what differs in the end from the same run that was not stopped."""
    different = {}
    for name, (stage, color, sections, step) in STOPPED_RUNS.items():
        train = {"batch_size": 8, "epochs": 4} | sections.get("train", {})
        sections = sections | {
            "model": {"width": 4, "color": color} | sections.get("model", {}),
            "deepspeed": {"zero_stage": stage},
            "train": train,
        }
        configs = [
            run_config(photos, f"{folder}/{world.size}/{name}/{kind}", **sections) for kind in ("whole", "parts")
        ]
        expected = state(train_run(configs[0], world))
        train_run(configs[1], world, stop_at_step=step)
        torch.manual_seed(123)  # what another process would start with
        different[name] = differences(expected, state(train_run(configs[1], world)))
    return different


# The ZeRO stage before and after a stop, with another number of ranks after it.
OTHER_STAGES = {"0 to 2": (0, 2), "2 to 0": (2, 0), "3 to 1": (3, 1), "1 to 3": (1, 3)}


def begin_runs(world: World, photos: str, folder: str) -> dict[str, dict[str, Any]]:
    """Each of OTHER_STAGES up to its 2nd step: what was saved, by name, which samples were drawn, and the last loss."""
    begun = {}
    for name, (stage, _) in OTHER_STAGES.items():
        trainer, drawn, losses = _recorded(_stage_config(photos, f"{folder}/{name}", stage), world, stop_at_step=1)
        begun[name] = {"saved": _digests(trainer), "drawn": drawn, "last loss": losses[-1]}
    return begun


def resume_runs(world: World, photos: str, folder: str) -> dict[str, dict[str, Any]]:
    """Each of OTHER_STAGES from there to its end, on this number of ranks: what was restored, drawn, the first loss."""
    resumed = {}
    for name, (_, stage) in OTHER_STAGES.items():
        config = _stage_config(photos, f"{folder}/{name}", stage)
        restored = _digests(make(config, world))
        _, drawn, losses = _recorded(config, world)
        resumed[name] = {"restored": restored, "drawn": drawn, "first loss": losses[0]}
    return resumed


def _stage_config(photos: str, folder: str, stage: int) -> Config:
    train = {"batch_size": 12, "epochs": 4, "ema_half_life": 20}
    return run_config(photos, folder, deepspeed={"zero_stage": stage}, train=train)


def _digests(trainer: Trainer) -> dict[str, str]:
    """A hash of everything that does not belong to one rank."""
    own = (".own.", "random", "losses", ".lr", "running_")  # means over 3 ranks of the same number are rounded
    shared = {name: tensor for name, tensor in state(trainer).items() if not any(part in name for part in own)}
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in shared.items()}


def _recorded(config: Config, world: World, stop_at_step: int | None = None) -> tuple[Trainer, list[int], list[float]]:
    """A run's trainer, the samples of all ranks in order of steps, and the generator's mean loss of each step."""
    drawn: list[int] = []
    losses: list[float] = []
    run_step, settle = Trainer.run_step, DeviceStep._settle

    def noted_step(self: Trainer, batch: Batch) -> Any:
        drawn.extend(number for share in gather(world, batch.numbers.tolist()) for number in share)
        return run_step(self, batch)

    def noted_losses(self: DeviceStep, values: torch.Tensor) -> None:
        losses.append(sum(gather(world, float(values[1]))) / world.size)
        settle(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_step", noted_step)
        patch.setattr(DeviceStep, "_settle", noted_losses)
        return train_run(config, world, stop_at_step), drawn, losses


def losses_of_stages(world: World) -> dict[str, list[list[float]]]:
    """20 steps at every ZeRO stage, by stage."""
    return {str(stage): losses_of_steps(world, 20, "unet", "float32", stage) for stage in (0, 1, 2, 3)}


def resumptions(world: World, photos: str, folder: str, begun_on: int | None) -> dict[str, Any]:
    """All that test_resume asks of this number of ranks, in one launch. begun_on: ranks of the runs to resume."""
    return {
        "stopped": stopped_runs(world, photos, folder),
        "losses": losses_of_stages(world),
        "begun": begin_runs(world, photos, f"{folder}/begun on {world.size}"),
        "resumed": resume_runs(world, photos, f"{folder}/begun on {begun_on}") if begun_on else None,
    }


def bad_steps(world: World) -> dict[str, dict[str, Any]]:
    """By ZeRO stage: what a step changes in which the last rank alone has a NaN in its target."""
    found = {}
    for stage in (0, 1, 2, 3):
        config = small_config(deepspeed={"zero_stage": stage})
        engines = build_engines(config, world)
        share = config.train.batch_size // world.size
        mine = slice(world.rank * share, (world.rank + 1) * share)
        conditions, targets = zip(*(random_batch(step, config) for step in range(3)), strict=True)
        gan_step(engines, conditions[0][mine], targets[0][mine], config.loss)
        before = networks(engines, world)
        bad = targets[1][mine].clone()
        bad[0, 0, 0, 0] = torch.nan if world.rank == world.size - 1 else 0
        gan_step(engines, conditions[1][mine], bad, config.loss)
        skipped = [float(engine.skipped) for engine in engines]
        engines.statistics.take_back(torch.tensor(True))
        after = networks(engines, world)
        gan_step(engines, conditions[2][mine], targets[2][mine], config.loss)
        resumes = bool(differences(after, networks(engines, world)))
        found[str(stage)] = {"changed": differences(before, after), "skipped": skipped, "resumes": resumes}
    return found


def validation_intervals(world: World, photos: str, folder: str) -> dict[str, Any]:
    """The interval between validations on this rank, and when they were. Only rank 0 has a clock that tells so."""
    without_plots()
    validation.FIRST_AFTER_S = 0.0 if world.is_main else 1e9
    validation.WARM_UP_STEPS = 1
    setattr(validation, "validation_interval", lambda *_: 16 if world.is_main else 8)  # noqa: B010
    tracking = {"log_every_steps": 100, "samples_every_images": 0, "tensorboard": False}
    trainer = train_run(run_config(photos, folder, tracking=tracking), world)
    metrics = read_metrics(trainer.run.metrics) if world.is_main else []
    measured = [row["images_seen"] for row in metrics if row["kind"] == "held_out"]
    return {"interval": trainer.state.counters.validation_interval, "measured": measured}


def bad_device_steps(world: World) -> dict[str, dict[str, Any]]:
    """By precision: what a whole step changes in which the last rank alone has a NaN in its target, the average, the
    loss scale and the sum of losses included."""
    found = {}
    for precision in ("fp32", "bf16", "fp16"):
        config = small_config(train={"batch_size": 8, "precision": precision, "device": "cpu", "threads": 1})
        run = RunState.initial(config, world)
        step = DeviceStep(config, world, run.engines, run.average, run.counters.losses_sum)
        images = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
        step.set_inputs(Flags(), average_share=0.1)
        scales = {f"{name} scale": engine.loss_scale for name, engine in run.engines.items()}

        def everything(run: RunState = run, scales: dict[str, torch.Tensor] = scales) -> dict[str, torch.Tensor]:
            assert run.average is not None
            averages = {f"average {number}": tensor for number, tensor in enumerate(run.average.averages)}
            own = {
                f"{name} {key}": b for name, engine in run.engines.items() for key, b in engine.module.named_buffers()
            }
            live = averages | own | scales | {"losses": run.counters.losses_sum}
            return networks(run.engines, world) | {name: tensor.clone() for name, tensor in live.items()}

        for _ in range(12 if precision == "fp16" else 1):  # until it has found a scale
            step.body(images[0], Phase.BOTH)
        for engine in run.engines:
            engine.loss_scale.fill_(1.0)  # the lowest, which a bad step does not lower
        before = everything()
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == world.size - 1:
                patch.setattr(device_step, "make_pair", with_nan)
            step.body(images[1], Phase.BOTH)
        after = everything()
        step.body(images[2], Phase.BOTH)
        found[precision] = {"changed": differences(before, after), "resumes": bool(differences(after, everything()))}
    return found


def with_nan(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As make_pair, with one NaN in the target."""
    condition, target = make_pair(*arguments, **named)
    target[0, 0, 0, 0] = torch.nan
    return condition, target


def late_stop(world: World, photos: str, folder: str) -> dict[str, Any]:
    """The steps of a run whose last rank receives a signal in its third one, while nothing else reads verdicts, and
    what differs in the end from the same run that was not stopped."""
    sections = {"tracking": {"log_every_steps": 1000}, "train": {"batch_size": 6, "epochs": 4}}
    expected = state(train_run(run_config(photos, f"{folder}/whole", **sections), world))
    config = run_config(photos, f"{folder}/parts", **sections)
    stopped = train_run(config, world, stop_at_step=2, at_once=False)
    torch.manual_seed(123)  # what another process would start with
    return {
        "stopped_after_steps": stopped.images_seen // config.train.batch_size,
        "different": differences(expected, state(train_run(config, world))),
    }


def rank_agreement(world: World) -> dict[str, Any]:
    """All that test_ranks compares between one rank and two, in one launch."""
    losses = {f"float64 {name}": losses_of_steps(world, 20, name, "float64") for name in GENERATORS}
    return losses | {
        "float32": losses_of_steps(world, 20, "unet", "float32"),
        "norm": cross_rank_norm(world),
        "scores": scores(world),
        "bad step": bad_steps(world),
    }


def trainings_in_turn(world: World, photos: str, folder: str) -> list[str]:
    """Trains the same run again and again under other names; in between, one is refused before its networks are made,
    and one after, since it is to end before it is.

    Returns what each came to: the hash of its weights, or why it ended.
    """
    stop()  # each training joins a process group of its own
    came_to = []
    for name, place, epochs in (
        ("first", photos, 2),
        ("refused", "nowhere", 2),
        ("second", photos, 2),
        ("first", photos, 1),
        ("third", photos, 2),
    ):
        config = small_config(
            data={"photos": place, "size": 32, "held_out_count": 3},
            train={"batch_size": 4, "epochs": epochs, "device": "cpu", "threads": 1},
            run={"name": name, "folder": folder},
        )
        try:
            *_, file = sorted(train(config, StopRequest()).path.glob("checkpoints/*/shard-00000-*"))
            came_to.append(record_of(file).hash)
        except UserError as error:
            came_to.append(error.problem)
    start("cpu", threads=1)
    return came_to


def shards_of_rank(world: World, data: str, folder: str) -> str:
    """Where a rank reads its samples, if each has them at a place of its own: data/RANK."""
    stop()
    read: list[str] = []

    def noting(config: Config, *arguments: Any) -> SampleSets:
        read.append(str(config.data.shards))
        return collect_photographs(config, *arguments)

    config = small_config(
        data={"shards": f"{data}/{world.rank}", "size": 32},
        train={"batch_size": 4, "epochs": 1, "device": "cpu", "threads": 1},
        run={"folder": folder},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpc_recolor.training.trainer.collect_photographs", noting)
        train(config, StopRequest())
    start("cpu", threads=1)
    return read[0]


def fitted_runs(world: World, photos: str, folder: str, stage: int) -> dict[str, Any]:
    """A run whose last rank has memory for one image at a time, tried as on a GPU and then resumed; and the same run
    with the train.accumulate that this must find. Digests of their last checkpoints, and whether they were tried."""
    stop()
    tried: list[int] = []

    def fitted_run(name: str, epochs: int, accumulate: int = 1) -> dict[str, str]:
        train_section = {"batch_size": 8, "epochs": epochs, "accumulate": accumulate, "device": "cpu", "threads": 1}
        sections: dict[str, dict[str, Any]] = {
            "run": {"name": name, "folder": folder},
            "deepspeed": {"zero_stage": stage},
        }
        data = {"photos": photos, "size": 32, "held_out_count": 3}
        run = train(small_config(data=data, train=train_section, **sections), StopRequest())
        *_, newest = sorted(run.checkpoints.glob("images-*"))
        return {file.name: record_of(file).hash for file in sorted(newest.glob("*.safetensors"))}

    def try_step(config: Config, world: World, photos: SampleSets) -> None:
        tried.append(config.train.accumulate)
        if world.rank == world.size - 1 and config.train.accumulate < 4:
            raise torch.OutOfMemoryError("planted")
        really_try_step(config, world, photos)

    really_try_step = fit_memory._try_step
    expected = [fitted_run("expected", epochs, accumulate=4) for epochs in (2, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_memory, "_raises_out_of_memory", lambda device: True)
        patch.setattr(fit_memory, "_try_step", try_step)
        found = [fitted_run("fitted", epochs) for epochs in (2, 4)]
    start("cpu", threads=1)
    return {"tried": tried, "equal": [one == other for one, other in zip(found, expected, strict=True)]}


def cached_batches(world: World, shards: str, refused: bool) -> dict[str, Any]:
    """Whether batches of the host cache are those of the shards, how many samples this rank has loaded for it, the
    inodes of memory that ranks share, and what was printed. refused: rank 1 cannot map that memory."""
    config = small_config(data={"shards": shards, "size": 32, "cache": "host"})
    samples = collect(config, world).train
    order, printed, loaded = SampleOrder(len(samples), seed=3), io.StringIO(), []
    fill = batches._fill

    def noted_fill(images: torch.Tensor, *arguments: Any) -> None:
        loaded.append(len(images))
        fill(images, *arguments)

    def refuse(path: str, size_bytes: int, token: bytes) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def first_batches(data: DataConfig) -> list[Batch]:
        with closing(batches.training_batches(samples, order, 4, 8, data, world)) as found:
            return list(islice(found, 4))

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(printed):
        patch.setattr(batches, "_fill", noted_fill)
        if refused and world.rank == 1:
            patch.setattr(host_cache, "map_file", refuse)
        with closing(batches.training_batches(samples, order, 4, 8, config.data, world)) as found:
            cached = list(islice(found, 4))
            maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    plain = first_batches(config.data.model_copy(update={"cache": "none"}))
    return {
        "equal": all(torch.equal(one.rgb_u8_NHWC, other.rgb_u8_NHWC) for one, other in zip(cached, plain, strict=True)),
        "loaded": sum(loaded),
        "inodes": sorted({line[4] for line in maps if len(line) > 5 and host_cache.NAME in line[5]}),
        "printed": printed.getvalue(),
    }


def main() -> None:
    """Run the worker that is named on this rank and write what it returns."""
    name, arguments, out = sys.argv[1:]
    without_plots()
    world = start("cpu", threads=1)
    result = globals()[name](world, *json.loads(arguments))
    (Path(out) / f"{world.rank}.json").write_text(json.dumps(result))
    stop()


if __name__ == "__main__":
    main()
