"""`python -m benchmarks.step`: the engines' step beside a plain PyTorch twin, in one process, in turn."""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import check_out, describe_machine, synchronize
from hpc_recolor import cli
from hpc_recolor.config import Config, load_config
from hpc_recolor.errors import UserError

app = cli.command("benchmarks.step")

WARM_UP_ROUNDS = 2


@app.default
def step(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=7), help="Timed rounds [rounds, 7 or more].")] = 11,
    steps: Annotated[int, Parameter(validator=Number(gte=1), help="Steps in a round [steps, 1 or more].")] = 2,
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = Config(),  # noqa: B008, frozen
) -> None:
    """Time our step and plain PyTorch's on the same batches, alternating, and print the ratio of medians.

    Above 1 the engines' step is the faster. Both start from the same weights and see the same random batches.
    """
    config = load_config(None, cli.given(flags))
    if config.loss.adversarial != "bce":
        raise UserError(f"loss.adversarial={config.loss.adversarial}: the plain step knows only bce")
    check_out(out)
    result = measure(config, rounds, steps)
    machine = result["machine"]
    where = machine["gpu"] or f"CPU, {machine['threads']} threads"
    print(
        f"{where}, width {config.model.width}, batch {config.train.batch_size}, {config.data.size} px: "
        f"ours {result['ours_ms']:.1f} ms, plain {result['plain_ms']:.1f} ms a step, "
        f"plain / ours = {result['ratio']:.3f} (medians of {result['rounds']} rounds)"
    )
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: Config, rounds: int, steps: int) -> dict[str, Any]:
    """Medians [ms a step] of both sides and their ratio, with machine, versions and config."""
    import torch

    from benchmarks.plain_step import PlainStep
    from hpc_recolor.color_space import CONDITION_CHANNELS, target_channels
    from hpc_recolor.distributed import start
    from hpc_recolor.training.engine import build_engines
    from hpc_recolor.training.step import gan_step

    world = start(config.train.device, config.train.threads)
    engines = build_engines(config, world)
    plain = PlainStep.beside(engines, config)
    shape = (config.train.batch_size, CONDITION_CHANNELS, config.data.size, config.data.size)
    condition = torch.rand(shape, device=world.device) * 2 - 1
    target = torch.rand(shape[0], target_channels(config.model.color), *shape[2:], device=world.device) * 2 - 1

    def time_ms(side: Any) -> float:
        synchronize(world.device)
        started_s = time.perf_counter()
        for _ in range(steps):
            side()
        synchronize(world.device)
        return (time.perf_counter() - started_s) / steps * 1000

    sides = {
        "ours": lambda: gan_step(engines, condition, target, config.loss),
        "plain": lambda: plain(condition, target),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name in sorted(sides, reverse=number % 2 == 1):  # neither side is always the first
            elapsed_ms = time_ms(sides[name])
            if number >= 0:
                times[name].append(elapsed_ms)
    ours_ms, plain_ms = median(times["ours"]), median(times["plain"])
    return {
        "ours_ms": ours_ms,
        "plain_ms": plain_ms,
        "ratio": plain_ms / ours_ms,
        "rounds": rounds,
        "times_ms": times,
        "machine": describe_machine(),
        "config": config.model_dump(mode="json", include={"model", "loss", "train", "data"}),
    }


if __name__ == "__main__":
    sys.exit(cli.run(app))
