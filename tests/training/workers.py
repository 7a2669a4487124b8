"""What tests run on several ranks: `python -m tests.training.workers NAME JSON_ARGUMENTS OUT`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hpc_recolor.config import Config, GeneratorName, load_config
from hpc_recolor.distributed import World, start, stop
from hpc_recolor.evaluation.metrics import score
from hpc_recolor.models.build import build_generator
from hpc_recolor.models.norm import CrossRankBatchNorm2d
from hpc_recolor.training.engine import Engines, build_engines
from hpc_recolor.training.step import gan_step

GENERATORS: tuple[GeneratorName, ...] = ("unet", "autoencoder", "resnet")


def small_config(**sections: dict[str, Any]) -> Config:
    """Networks of width 8 on 32 px, everything else as the defaults or as said."""
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


def losses_of_steps(world: World, steps: int, generator: str, dtype: str) -> list[list[float]]:
    """Both networks' losses of each step, as means over ranks, with BatchNorm over all ranks."""
    config = small_config(model={"width": 8, "dropout": 0.0, "norm": "sync_batch", "generator": generator})
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
    """DeepSpeed starts and reduces in float32 or less; before the first step the engines can still be widened."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().supported_dtypes = lambda: [torch.float32, torch.float64]
    for engine in engines:
        engine.module.double()
        engine.communication_data_type = torch.float64


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
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    return [asdict(score(generator, pictures[:count][world.rank :: world.size], "lab", world)) for count in (3, 1)]


def rank_agreement(world: World) -> dict[str, Any]:
    """All that test_ranks compares between one rank and two, in one launch."""
    losses = {f"float64 {name}": losses_of_steps(world, 20, name, "float64") for name in GENERATORS}
    return losses | {
        "float32": losses_of_steps(world, 20, "unet", "float32"),
        "norm": cross_rank_norm(world),
        "scores": scores(world),
    }


def main() -> None:
    """Run the worker that is named on this rank and write what it returns."""
    name, arguments, out = sys.argv[1:]
    world = start("cpu", threads=1)
    result = globals()[name](world, *json.loads(arguments))
    (Path(out) / f"{world.rank}.json").write_text(json.dumps(result))
    stop()


if __name__ == "__main__":
    main()
