"""`python -m benchmarks.step`: the training loop's step, a plain PyTorch twin, and torch.compile of that, in turn."""

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import check_out, describe_machine, large_product, synchronize
from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, merge
from hpc_recolor.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from hpc_recolor.runtime.distributed import World

app = cli.command("benchmarks.step", distributed=True)

WARM_UP_ROUNDS = 2

Side = Literal["compiled", "zero0", "zero1", "zero2", "zero3"]
Step = Callable[[], Any]


@app.default
def step(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=7), help="Timed rounds [rounds, 7 or more].")] = 15,
    steps: Annotated[int, Parameter(validator=Number(gte=1), help="Steps per round [steps, 1 or more].")] = 2,
    sides: Annotated[
        Sequence[Side],
        Parameter(help="What is timed beside plain PyTorch: torch.compile of it, and the loop at ZeRO stages."),
    ] = ("compiled", "zero0"),
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Time the training loop's step and plain PyTorch's; print ratios of medians, and the share of the peak.

    The loop's step has all that the loop does on the device: colors, both updates through the engines, average, check
    of every gradient, agreement of the ranks; as a CUDA graph on GPUs. The plain one has colors and both updates, with
    autocast, channels_last (if configured) and DDP (on several ranks). A ratio above 1 is faster than plain. The peak
    is that of a large matrix product, which takes its turns too. On several ranks:
    torchrun --nproc_per_node 2 -m benchmarks.step
    """
    config = cli.load(None, flags)
    _check(config)
    check_out(out)
    result = measure(config, rounds, steps, sides)
    if result["rank"]:
        return
    print("\n".join(report(result)))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def _check(config: Config) -> None:
    """Raises UserError if the plain step would minimize something else."""
    for key, value in (("adversarial", "bce"), ("reconstruction", "l1"), ("perceptual_weight", 0)):
        if (found := getattr(config.loss, key)) != value:
            subject = f"loss.{key}"
            raise UserError(f"{subject}={found}", f"the plain step supports only {value}", f"use {subject}={value}")


def measure(config: Config, rounds: int, steps: int, sides: Sequence[Side]) -> dict[str, Any]:
    """Medians [ms per step] of all sides and what follows from them, with machine, versions and config."""
    import torch

    from benchmarks.loop_step import random_images
    from hpc_recolor.runtime.distributed import start, stop
    from hpc_recolor.training.tracking.flops import flop_per_image

    world = start(config.train.device, config.train.threads)
    images = random_images(config, world)
    calls = _calls(config, world, images, sides)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    product, product_tflop = large_product(world.device, dtype)
    times = _time_in_turn(calls | {"product": product}, world, rounds, steps)
    peak = product_tflop / median(times.pop("product")) * 1000
    result = {
        **_figures(times, config, flop_per_image(config) / world.size / 1e12, peak),
        "launches": {name: None if name == "compiled" else _launches(call, world) for name, call in calls.items()},
        "waits": {name: _waits(call) if world.device.type == "cuda" else None for name, call in calls.items()},
        "rounds": rounds,
        "rank": world.rank,
        "ranks": world.size,
        "times_ms": times,
        "machine": describe_machine(),
        "config": config.model_dump(mode="json", include={"model", "loss", "train", "data"}),
    }
    stop()
    return result


def _calls(config: Config, world: "World", images: "Tensor", sides: Sequence[Side]) -> dict[str, Step]:
    """A step of each side by name, plain first. All start from the same weights and see the same images."""
    import torch

    from benchmarks.loop_step import LoopStep
    from benchmarks.plain_step import PlainStep
    from hpc_recolor.models.color_space import make_pair

    def staged(stage: int) -> Config:
        return load_config(None, merge(config.model_dump(), {"deepspeed": {"zero_stage": stage}}))

    def plain_step(twin: PlainStep) -> None:
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        twin(*make_pair(images, config.model.color, memory_format=layout))

    loops = {side: LoopStep(staged(int(side[-1])), world) for side in sides if side != "compiled"}
    first = next(iter(loops.values()), None) or LoopStep(staged(0), world)
    twins = {"plain": False} | ({"compiled": True} if "compiled" in sides else {})
    calls: dict[str, Step] = {
        name: partial(plain_step, PlainStep.beside(first.state.engines, config, world, compiled=compiled))
        for name, compiled in twins.items()
    }
    return calls | {name: partial(loop, images) for name, loop in loops.items()}


def _time_in_turn(calls: dict[str, Step], world: "World", rounds: int, steps: int) -> dict[str, list[float]]:
    """Times of a step [ms] in every round, by side."""
    import torch

    def time_ms(call: Step) -> float:
        synchronize(world.device)
        torch.distributed.barrier()
        started_s = time.perf_counter()
        for _ in range(steps):
            call()
        synchronize(world.device)
        return (time.perf_counter() - started_s) / steps * 1000

    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name in sorted(calls, reverse=number % 2 == 1):  # no side is always first
            elapsed_ms = time_ms(calls[name])
            if number >= 0:
                times[name].append(elapsed_ms)
    return times


def _figures(
    times: dict[str, list[float]], config: Config, rank_tflop_per_image: float, peak_tflop_per_s: float
) -> dict[str, Any]:
    step_ms = {name: median(elapsed) for name, elapsed in times.items()}
    images_per_s = {name: config.train.batch_size / elapsed * 1000 for name, elapsed in step_ms.items()}
    return {
        "step_ms": step_ms,
        "ratios": {name: step_ms["plain"] / elapsed for name, elapsed in step_ms.items()},
        "images_per_s": images_per_s,
        "peak_tflop_per_s": peak_tflop_per_s,
        "share_of_peak": {name: rate * rank_tflop_per_image / peak_tflop_per_s for name, rate in images_per_s.items()},
    }


def _launches(call: Step, world: "World") -> int:
    """Launches in a step: on a GPU those that its driver received, else what operations would launch there."""
    from benchmarks.launches import LaunchCounter

    if world.device.type != "cuda":
        counter = LaunchCounter()
        with counter.within("step"):
            call()
        return counter.counted.total()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        synchronize(world.device)
    return sum(event.count for event in found.key_averages() if "Launch" in event.key)


def _waits(call: Step) -> int:
    """How often the host waits for the GPU in a step, as torch's own check counts it."""
    import torch

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        call()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in found)


def report(result: dict[str, Any]) -> list[str]:
    """The lines that are printed: one about the setting, and one a side."""
    machine, train = result["machine"], result["config"]["train"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads per rank"
    layout = ", channels_last" if train["channels_last"] else ""
    lines = [
        f"{where}, {result['ranks']} ranks, width {result['config']['model']['width']}, batch {train['batch_size']}, "
        f"{result['config']['data']['size']} px, {train['precision']}{layout}; medians of {result['rounds']} rounds; "
        f"a matrix product reaches {result['peak_tflop_per_s']:.3g} TFLOP/s:"
    ]
    for name, step_ms in result["step_ms"].items():
        launches, waits = result["launches"][name], result["waits"][name]
        lines.append(
            f"{name:>9}: {step_ms:9.1f} ms per step, plain / this = {result['ratios'][name]:.3f}, "
            f"{result['images_per_s'][name]:,.1f} images/s, {result['share_of_peak'][name]:.0%} of the product's speed"
            f"{'' if launches is None else f', {launches} launches'}{'' if waits is None else f', {waits} waits'}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(cli.run(app))
