"""`python -m benchmarks.checkpoint`: save and restore against torch.save, torch.load, disk and memory, alternating."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any, BinaryIO

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import check_out, describe_machine
from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.runtime.errors import UserError

app = cli.command("benchmarks.checkpoint", distributed=True)

INTERVAL_S = 300
CHUNK_BYTES = 1 << 24


@app.default
def checkpoint(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=1), help="Timed rounds [rounds, 1 or more].")] = 9,
    folder: Annotated[
        Path | None, Parameter(help="Folder on the disk to measure; by default that for temporary files.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Time saving and restoring a whole run, by default at full width, and how long training waits for it."""
    config = cli.load(None, flags)
    check_out(out)
    if folder and not folder.is_dir():
        raise UserError(f"folder={folder}", "no such folder", "name one on the disk to measure")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        result = measure(config, rounds, Path(place))
    if result["rank"]:
        return
    size_mb = result["size_mb"]
    print(f"{result['ranks']} ranks, {size_mb:.0f} MB per checkpoint, medians of {rounds} rounds:")
    for name, elapsed_s in result["seconds"].items():
        print(f"{name:>28}: {elapsed_s:7.2f} s  {size_mb / elapsed_s:7.0f} MB/s")
    stalled_s = result["stalled_s"]
    print(f"training waits {stalled_s:.2f} s for a background save: {stalled_s / INTERVAL_S:.2%} of {INTERVAL_S} s")
    print(", ".join(f"{name} = {ratio:.2f}" for name, ratio in result["ratios"].items()))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: Config, rounds: int, place: Path) -> dict[str, Any]:
    """Medians [s] of every way to save and to restore, and of the time that a background save stalls training."""
    import torch

    from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels
    from hpc_recolor.run_folder.folder import RunFolder
    from hpc_recolor.runtime.distributed import highest, on_main, start, stop
    from hpc_recolor.training.background_writer import BackgroundWriter
    from hpc_recolor.training.run_state import RunState, restore, shard_tensors
    from hpc_recolor.training.step import gan_step

    world = start(config.train.device, config.train.threads)
    place = on_main(world, lambda: place)
    state = RunState.initial(config, world)
    shape = (config.train.batch_size // world.size, CONDITION_CHANNELS, config.data.size, config.data.size)
    condition = torch.rand(shape, device=world.device) * 2 - 1
    target = torch.rand(shape[0], target_channels(config.model.color), *shape[2:], device=world.device) * 2 - 1
    run, plain = RunFolder(place), place / f"plain-{world.rank}.pt"
    stalls_s: list[float] = []

    def writer(background: bool) -> BackgroundWriter:
        section = {**config.checkpoint.model_dump(), "background": background, "keep": 1}
        return BackgroundWriter(
            run, load_config(None, {**config.model_dump(), "checkpoint": section}), "benchmark", world
        )

    in_foreground, in_background = writer(False), writer(True)

    def save() -> None:
        state.counters.images_seen += 1
        in_foreground.start(state)
        in_foreground.finish()
        in_foreground.finish_removal()

    def save_beside_training() -> None:
        state.counters.images_seen += 1
        in_background.start(state)
        while highest(world, [in_background.is_writing])[0]:
            gan_step(state.engines, condition, target, config.loss)
        stalls_s.append(in_background.finish().stalled_s)
        in_background.finish_removal()

    live = shard_tensors(state, world)
    size_bytes = sum(tensor.nbytes for tensor in live.values())
    ways: dict[str, Callable[[], Any]] = {
        "copy in memory": lambda: {key: tensor.to("cpu", copy=True) for key, tensor in live.items()},
        "bare write": lambda: write_plainly(place / f"plain-{world.rank}", live),
        "torch.save": lambda: save_plainly(plain, shard_tensors(state, world)),
        "our save": save,
        "our save beside training": save_beside_training,
        "torch.load": lambda: load_plainly(plain, live),
        "our restore, verified": lambda: restore(run, state, lambda photos: True, world),
    }
    times = time_in_turn(ways, rounds)
    stop()
    seconds = {name: median(elapsed) for name, elapsed in times.items()}
    return {
        "seconds": seconds,
        "stalled_s": median(stalls_s),
        "size_mb": size_bytes * world.size / 1e6,
        "ratios": {
            "save / bare write": seconds["our save"] / seconds["bare write"],
            "save / torch.save": seconds["our save"] / seconds["torch.save"],
            "restore / torch.load": seconds["our restore, verified"] / seconds["torch.load"],
            "wait / copy in memory": median(stalls_s) / seconds["copy in memory"],
        },
        "times_s": times,
        "rank": world.rank,
        "ranks": world.size,
        "machine": describe_machine(),
        "config": config.model_dump(mode="json", include={"model", "train", "checkpoint", "deepspeed"}),
    }


def write_plainly(file: Path, tensors: dict[str, Any]) -> None:
    """Write and sync the tensors' bytes: the bare disk."""
    import torch

    with file.open("wb") as stream:
        for tensor in tensors.values():
            content = memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
            for start in range(0, len(content), CHUNK_BYTES):
                stream.write(content[start : start + CHUNK_BYTES])
        _sync(stream)


def save_plainly(file: Path, tensors: dict[str, Any]) -> None:
    """torch.save, then sync."""
    import torch

    with file.open("wb") as stream:
        torch.save(tensors, stream)
        _sync(stream)


def load_plainly(file: Path, tensors: dict[str, Any]) -> None:
    """Read a file of `save_plainly` into tensors of the same names."""
    import torch

    for key, value in torch.load(file, weights_only=True).items():
        tensors[key].copy_(value)


def time_in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times [s] of each way, alternating in each round; all ranks start each together."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            torch.distributed.barrier()
            started_s = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started_s)
    return times


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


if __name__ == "__main__":
    sys.exit(cli.run(app))
