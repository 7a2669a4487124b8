"""`python -m benchmarks.step`: the engines' step at every ZeRO stage against a plain PyTorch twin, alternating."""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import check_out, describe_machine, synchronize
from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.errors import UserError

app = cli.command("benchmarks.step", distributed=True)

WARM_UP_ROUNDS = 2
ZERO_STAGES = (0, 1, 2, 3)


@app.default
def step(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=7), help="Timed rounds [rounds, 7 or more].")] = 11,
    steps: Annotated[int, Parameter(validator=Number(gte=1), help="Steps per round [steps, 1 or more].")] = 2,
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Time the engines' step at ZeRO 0 to 3 and plain PyTorch's (DDP on several ranks); print ratios of medians.

    Above 1 the engines' step is faster. All start from the same weights and see the same random batches. On several
    ranks: torchrun --nproc_per_node 2 -m benchmarks.step ...
    """
    config = cli.load(None, flags)
    if config.loss.adversarial != "bce":
        raise UserError(
            f"loss.adversarial={config.loss.adversarial}",
            "the plain step supports only bce",
            "use loss.adversarial=bce",
        )
    check_out(out)
    result = measure(config, rounds, steps)
    if result["rank"]:
        return
    machine = result["machine"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads per rank"
    print(
        f"{where}, {result['ranks']} ranks, width {config.model.width}, batch {config.train.batch_size}, "
        f"{config.data.size} px; medians of {result['rounds']} rounds:"
    )
    for name, step_ms in result["step_ms"].items():
        print(f"{name:>10}: {step_ms:9.1f} ms per step, plain / this = {result['ratios'][name]:.3f}")
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: Config, rounds: int, steps: int) -> dict[str, Any]:
    """Medians [ms per step] of all sides, and their ratios to plain, with machine, versions and config."""
    import torch

    from benchmarks.plain_step import PlainStep
    from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels
    from hpc_recolor.runtime.distributed import start, stop
    from hpc_recolor.training.engine.deepspeed_engine import build_engines
    from hpc_recolor.training.step import gan_step

    world = start(config.train.device, config.train.threads)
    staged = {
        stage: build_engines(load_config(None, {**config.model_dump(), "deepspeed": {"zero_stage": stage}}), world)
        for stage in ZERO_STAGES
    }
    plain = PlainStep.beside(staged[0], config, world)
    shape = (config.train.batch_size // world.size, CONDITION_CHANNELS, config.data.size, config.data.size)
    condition = torch.rand(shape, device=world.device) * 2 - 1
    target = torch.rand(shape[0], target_channels(config.model.color), *shape[2:], device=world.device) * 2 - 1
    sides: dict[str, Callable[[], Any]] = {"plain": lambda: plain(condition, target)}
    for stage, engines in staged.items():
        sides[f"ZeRO {stage}"] = partial(gan_step, engines, condition, target, config.loss)

    def time_ms(side: Callable[[], Any]) -> float:
        synchronize(world.device)
        torch.distributed.barrier()
        started_s = time.perf_counter()
        for _ in range(steps):
            side()
        synchronize(world.device)
        return (time.perf_counter() - started_s) / steps * 1000

    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name in sorted(sides, reverse=number % 2 == 1):  # no side is always first
            elapsed_ms = time_ms(sides[name])
            if number >= 0:
                times[name].append(elapsed_ms)
    stop()
    step_ms = {name: median(elapsed) for name, elapsed in times.items()}
    return {
        "step_ms": step_ms,
        "ratios": {name: step_ms["plain"] / elapsed for name, elapsed in step_ms.items()},
        "rounds": rounds,
        "rank": world.rank,
        "ranks": world.size,
        "times_ms": times,
        "machine": describe_machine(),
        "config": config.model_dump(mode="json", include={"model", "loss", "train", "data"}),
    }


if __name__ == "__main__":
    sys.exit(cli.run(app))
