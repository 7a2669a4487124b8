"""`python -m benchmarks.loader`: how many photographs a second reach the training device."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import describe_machine
from hpc_recolor import cli
from hpc_recolor.config import Config, load_config
from hpc_recolor.errors import UserError

app = cli.command("benchmarks.loader")

WARM_UP_ROUNDS = 2


@app.default
def loader(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=5), help="Timed rounds [rounds, 5 or more].")] = 11,
    batches: Annotated[int, Parameter(validator=Number(gte=1), help="Batches in a round [batches, 1 or more].")] = 8,
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = Config(),  # noqa: B008, frozen
) -> None:
    """Time the training batches of a folder of photographs (data.photos), and nothing else; print images a second.

    Decoding, resizing and flipping are in the figure; the first use of the pipeline is not.
    """
    config = load_config(None, cli.given(flags))
    if out and not out.parent.is_dir():
        raise UserError(f"out={out}: no such folder {out.parent}; make it first")
    result = measure(config, rounds, batches)
    p20, p50, p80 = result["images_per_s"]
    print(
        f"{result['machine']['gpu'] or 'CPU'}, {result['photos']} photographs to {config.data.size} px, batch "
        f"{config.train.batch_size}, {config.data.threads} threads: {p50:.0f} images/s (p20 {p20:.0f}, p80 {p80:.0f}, "
        f"{rounds} rounds)"
    )
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: Config, rounds: int, batches: int) -> dict[str, Any]:
    """[p20, p50, p80] of the rounds' images a second, with machine, versions and config."""
    import numpy as np
    import torch

    from hpc_recolor.data.order import SampleOrder
    from hpc_recolor.data.pipeline import training_batches
    from hpc_recolor.data.sources import collect
    from hpc_recolor.distributed import start

    world = start(config.train.device, config.train.threads)
    photos = collect(config, world).train
    order = SampleOrder(len(photos), config.run.seed)
    stream = training_batches(photos, order, 0, config.train.batch_size, config.data, world)
    rates = []
    for number in range(-WARM_UP_ROUNDS, rounds):
        started_s = time.perf_counter()
        for _ in range(batches):
            next(stream)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        if number >= 0:
            rates.append(batches * config.train.batch_size / (time.perf_counter() - started_s))
    return {
        "images_per_s": np.percentile(rates, [20, 50, 80]).tolist(),
        "rounds": rounds,
        "photos": len(photos),
        "machine": describe_machine(),
        "config": config.model_dump(mode="json", include={"data", "train"}),
    }


if __name__ == "__main__":
    sys.exit(cli.run(app))
