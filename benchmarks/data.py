"""`python -m benchmarks.data`: images/s from photographs, shards and caches, and what the training step needs."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import check_out, describe_machine, synchronize
from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.runtime.errors import UserError

app = cli.command("benchmarks.data")

BASELINE = "torchvision, photographs"
# Steps per turn. On a CPU each takes seconds; on a GPU they must outlast the batches that are ready at the start.
STEPS = {"cpu": 1, "cuda": 30}

Loader = Callable[[], Any]  # -> closable iterator of batches


@app.default
def data(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=3), help="Turns of each loader [rounds, 3 or more].")] = 7,
    turn_s: Annotated[float, Parameter(validator=Number(gt=0), help="Length of a turn [seconds].")] = 2.0,
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Time loaders on the same photographs (data.photos), one after the other in every round, then the training step.

    The baseline is torchvision's DataLoader with data.threads workers. Shards are prepared from the same photographs,
    in a temporary folder. The last figures show whether the step waits for its data.
    """
    config = cli.load(None, flags)
    if not config.data.photos:
        raise UserError("data.photos", "not set", "name a folder of photographs with --data.photos DIR")
    check_out(out)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(config, rounds, turn_s, Path(folder))
    print_result(result, config)
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: Config, rounds: int, turn_s: float, work: Path) -> dict[str, Any]:
    """Images/s of every turn, and milliseconds of steps with and without a loader."""
    from hpc_recolor.runtime.distributed import start

    world = start(config.train.device, config.train.threads)
    loaders = build_loaders(config, world, work)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    warm_up_batches = 2 * config.data.threads + 6  # more than any loader reads ahead
    for number in range(rounds):
        for name in sorted(loaders, reverse=number % 2 == 1):
            batch_size = config.train.batch_size
            rates[name].append(images_per_s(loaders[name], batch_size, turn_s, warm_up_batches, world.device))
            print(f"  round {number + 1} of {rounds}: {name} {rates[name][-1]:.0f} images/s", file=sys.stderr)
    return {
        "images_per_s": rates,
        "step_ms": step_times(config, world, loaders, rounds),
        "machine": describe_machine(),
        "config": config.model_dump(
            mode="json", include={"data", "train", "model"}, exclude={"data": {"photos", "shards", "held_out"}}
        ),
    }


def print_result(result: dict[str, Any], config: Config) -> None:
    """A table of medians and ratios."""
    machine = result["machine"]
    medians = {name: median(rates) for name, rates in result["images_per_s"].items()}
    print(
        f"{machine['gpu'] or 'CPU'}, {machine['cores']} cores, {config.data.threads} threads or workers, batch "
        f"{config.train.batch_size}, {config.data.size} px, medians of {len(result['images_per_s'][BASELINE])} turns"
    )
    print(f"{'':28}{'images/s':>10}{'per core':>10}{'x torchvision':>15}")
    for name, rate in medians.items():
        print(f"{name:28}{rate:10.0f}{rate / machine['cores']:10.0f}{rate / medians[BASELINE]:15.1f}")
    steps = {name: median(times) for name, times in result["step_ms"].items()}
    alone_ms = steps.pop("no loader")
    needed = config.train.batch_size / alone_ms * 1000
    print(f"the step (width {config.model.width}) takes {alone_ms:.0f} ms: it needs {needed:.0f} images/s")
    for name, step_ms in steps.items():
        print(f"  with {name}: {step_ms:.0f} ms, {medians[name] / needed:.1f} times the images/s that it needs")


def build_loaders(config: Config, world: Any, work: Path) -> dict[str, Loader]:
    """Every way to load the photographs of a config, by name."""
    from hpc_recolor.data import pack
    from hpc_recolor.data.batches import training_batches
    from hpc_recolor.data.order import SampleOrder
    from hpc_recolor.data.sets import collect
    from hpc_recolor.data.shards import PrepareOptions, ShardFormat, ShardSamples
    from hpc_recolor.runtime.progress import silent

    photos = collect(config, world).train

    def ours(samples: Any, cache: str) -> Any:
        data = config.data.model_copy(update={"cache": cache})
        order = SampleOrder(len(samples), config.run.seed)
        return training_batches(samples, order, 0, config.train.batch_size, data, world)

    def shards(shard_format: ShardFormat) -> Any:
        options = PrepareOptions(
            size=config.data.size, fit=config.data.fit, format=shard_format, min_side=1, min_colorfulness=0
        )
        folder = work / shard_format
        assert config.data.photos
        pack.prepare([config.data.photos], folder, options, config.data.threads, silent)
        return ShardSamples(folder, "train", options)

    raw, jpeg = shards("raw"), shards("jpeg")
    loaders: dict[str, Loader] = {
        BASELINE: partial(torchvision_batches, photos, config, world),
        "DALI, photographs": partial(ours, photos, "none"),
        "DALI, jpeg shards": partial(ours, jpeg, "none"),
        "DALI, raw shards": partial(ours, raw, "none"),
        "host cache": partial(ours, raw, "host"),
    }
    if world.device.type == "cuda":
        loaders["device cache"] = partial(ours, raw, "device")
    return loaders


def torchvision_batches(photos: Any, config: Config, world: Any) -> Iterator[Any]:
    """The usual way without this project: Pillow, torchvision's transforms, DataLoader with workers."""
    from torch.utils.data import DataLoader, RandomSampler

    from benchmarks.plain_photos import PlainPhotos

    dataset = PlainPhotos([photos.name(number) for number in range(len(photos))], config.data.size)
    loader = DataLoader(
        dataset,
        batch_size=config.train.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=2**40),
        num_workers=config.data.threads,
        pin_memory=world.device.type == "cuda",
        multiprocessing_context="forkserver",
    )
    for images in loader:
        yield images.to(world.device, non_blocking=True)


def images_per_s(loader: Loader, batch_size: int, turn_s: float, warm_up_batches: int, device: Any) -> float:
    """Images/s of a new loader, after its warm-up."""
    with closing(loader()) as batches:
        for _ in range(warm_up_batches):
            next(batches)
        synchronize(device)
        started_s = time.perf_counter()
        images = 0
        while time.perf_counter() - started_s < turn_s:
            next(batches)
            images += batch_size
        synchronize(device)
        return images / (time.perf_counter() - started_s)


def step_times(config: Config, world: Any, loaders: dict[str, Loader], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a whole training step (colors, both networks), in turn: on one repeated batch, and on loaders'
    batches."""
    from hpc_recolor.models.color_space import make_pair
    from hpc_recolor.training.engine.deepspeed_engine import build_engines
    from hpc_recolor.training.step import gan_step

    engines = build_engines(config, world)
    measured = [name for name in loaders if name != BASELINE]
    times: dict[str, list[float]] = {name: [] for name in ("no loader", *measured)}
    fixed, steps = next(loaders["DALI, raw shards"]()), STEPS[world.device.type]

    def steps_ms(batches: Iterator[Any]) -> float:
        synchronize(world.device)
        started_s = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
            condition, target = make_pair(batch.rgb_u8_NHWC, config.model.color, picks=batch.picks)
            gan_step(engines, condition, target, config.loss)
        synchronize(world.device)
        return (time.perf_counter() - started_s) / steps * 1000

    steps_ms(iter([fixed] * steps))
    for number in range(rounds):
        for name in sorted(times, reverse=number % 2 == 1):
            if name == "no loader":
                times[name].append(steps_ms(iter([fixed] * steps)))
            else:
                with closing(loaders[name]()) as batches:
                    next(batches)
                    times[name].append(steps_ms(batches))
    return times


if __name__ == "__main__":
    sys.exit(cli.run(app))
