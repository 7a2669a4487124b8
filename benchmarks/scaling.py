"""`python -m benchmarks.scaling`: how fast a step should be on one H100 and on many, from counts and a few constants.

On several ranks it checks the part about communication: torchrun --nproc_per_node 2 -m benchmarks.scaling. With
--mbit it predicts that, too, between hosts whose network has a known rate, as in the dev cluster.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.machine import synchronize
from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.runtime.distributed import world_size

if TYPE_CHECKING:
    from benchmarks.loop_step import LoopStep
    from hpc_recolor.runtime.distributed import World

app = cli.command("benchmarks.scaling", distributed=True)

BATCHES = (32, 128, 256, 512)


@dataclass(frozen=True)
class Card:
    """What an H100 does: products in bfloat16 and float32 [FLOP/s], memory [bytes/s], and a launch by the host [s]."""

    bf16: float
    fp32: float
    memory: float
    launch_s: float = 7e-6
    wait_s: float = 300e-6  # until the queue that the host let run empty is full again


# What convolutions and streaming kernels reach as a rule, and the best that is published.
EXPECTED = Card(bf16=450e12, fp32=50e12, memory=2.4e12)
CEILING = Card(bf16=700e12, fp32=60e12, memory=3.0e12)


@dataclass(frozen=True)
class Counted:
    """A step of the U-Net of width 64 at 128 px, RGB: what was counted of it on tensors without data.

    flop: of convolutions, an image. image_bytes: memory traffic outside of convolutions, an image; step_bytes: in a
    step, whatever its batch. slow_norm_s: what BatchNorm's generic backward takes longer than its fast one, an image.
    """

    name: str
    launches: int
    waits: int
    image_bytes: float
    step_bytes: float = 1.85e9
    flop: float = 21e9
    slow_norm_s: float = 0.0
    in_fp32: bool = False
    captured: bool = False

    def step_s(self, batch: int, card: Card) -> float:
        """Time of a step on one card [s]: the device's, or the host's if it launches slower than that."""
        compute_s = batch * self.flop / (card.fp32 if self.in_fp32 else card.bf16)
        traffic_s = (batch * self.image_bytes + self.step_bytes) / card.memory
        device_s = compute_s + traffic_s + batch * self.slow_norm_s
        host_s = 0.0 if self.captured else self.launches * card.launch_s
        return max(device_s, host_s) + self.waits * card.wait_s


BEFORE_ALL = Counted("76208ff: float32", 516, 2, 2 * 73e6, slow_norm_s=4.7e-6, in_fp32=True)
MENDED = replace(BEFORE_ALL, name="computes in bfloat16", image_bytes=74e6, in_fp32=False)
NO_WAITS = replace(MENDED, name="no waits", waits=0)
CAPTURED = replace(NO_WAITS, name="as a CUDA graph", captured=True)
DENSE = replace(
    CAPTURED, name="dense gradients, channels_last throughout", image_bytes=73e6, slow_norm_s=0.0, launches=491
)
NOW = replace(DENSE, name="norm, activation and dropout in one op", image_bytes=53.4e6, launches=427)
STEPS = (BEFORE_ALL, MENDED, NO_WAITS, CAPTURED, DENSE, NOW)


@dataclass(frozen=True)
class Network:
    """Links between GPUs: bytes that each moves in a ring [bytes/s], and the latency of a small all-reduce [s]."""

    name: str
    ranks: int
    bandwidth: float
    latency_s: float

    def all_reduce_s(self, size_bytes: float) -> float:
        """Time of an all-reduce of so many bytes."""
        return self.latency_s + 2 * (self.ranks - 1) / self.ranks * size_bytes / self.bandwidth


# Of a packet of 1,500 bytes what is not headers of TCP, IP and Ethernet; an all-reduce of few bytes between two hosts.
PAYLOAD, LATENCY_S = 1448 / 1514, 0.5e-3

GPUS_PER_NODE = 8
GPUS = (4, 8, 16, 32, 64, 128, 256, 512)


def network_of(gpus: int) -> Network:
    """NVLink in a node of eight; between nodes 400 Gbit/s a GPU, and more latency whenever their number doubles."""
    doublings = log2(max(1, gpus / GPUS_PER_NODE))
    return Network(f"{gpus} H100", gpus, 120e9 if doublings else 300e9, 40e-6 + 80e-6 / 3 * doublings)


NETWORKS = (network_of(8), network_of(64))
GOALS = {8: 0.95, 64: 0.90}

GENERATOR_BYTES, DISCRIMINATOR_BYTES = 4 * 41_826_947, 4 * 2_766_657
# Reduced together, once all are there: norms, biases, and the first and last weights.
SMALL_BYTES = 4 * 100_000
# Share of a step in which the generator's backward pass, after its largest gradients, still computes.
HIDING_SHARE = 0.25


# The state of a run, what one rank saves of it at the least (its largest tensor, with moments and average), and what a
# process writes and reads of it [bytes/s], measured on a virtual disk (docs/benchmarks.md).
STATE_BYTES, LARGEST_BYTES = 702e6, 4 * 4 * 8_388_608
WRITE, READ = 702e6 / 0.80, 702e6 / 0.57
# A parallel file system: what it moves for all nodes together [bytes/s], and files that it creates or opens [1/s].
DISK, OPENS = 10e9, 20e3
# Between two failures of a GPU, or of what it needs [GPU hours]: Llama 3's 419 in 54 days on 16,384 H100
# (arXiv:2407.21783, section 3.3.4).
BETWEEN_FAILURES_H = 54 * 24 * 16_384 / 419
LARGE_BATCH = 4096  # images, of all GPUs together


def save_s(gpus: int) -> float:
    """Time of a checkpoint beside training [s]: two files a rank, of which the largest tensor is in one."""
    written_s = max(max(STATE_BYTES / gpus, LARGEST_BYTES) / WRITE, STATE_BYTES / DISK)
    return written_s + 2 * gpus / OPENS


def restore_s(gpus: int) -> float:
    """Time of a restore [s]: each rank opens the shards of all, and each node reads the whole state once."""
    nodes = max(1, gpus // GPUS_PER_NODE)
    return max(STATE_BYTES / READ, nodes * STATE_BYTES / DISK) + gpus**2 / OPENS


def weak_scaling(step_s: float, network: Network, compiled: bool) -> float:
    """Speed of a rank beside others, over its speed alone.

    compiled: gradients then arrive all at once, after the backward pass; else large ones are reduced beside it. Exposed
    are always the small gradients of both networks and the verdict.
    """
    exposed_s = 2 * network.all_reduce_s(SMALL_BYTES) + network.all_reduce_s(24)
    large_s = network.all_reduce_s(GENERATOR_BYTES) + network.all_reduce_s(DISCRIMINATOR_BYTES)
    exposed_s += large_s if compiled else max(0.0, large_s - HIDING_SHARE * step_s)
    return step_s / (step_s + exposed_s)


@app.default
def scaling(
    *,
    mbit: Annotated[
        float | None, Parameter(help="Rate of the network between ranks [Mbit/s].", validator=Number(gt=0))
    ] = None,
    flags: cli.ConfigFlags = cli.NO_FLAGS,
) -> None:
    """Print predictions for H100s; on several ranks, a step's time beside those of its parts."""
    if (ranks := world_size()) > 1:
        config = cli.load(None, flags)
        network = Network(f"{mbit:g} Mbit/s", ranks, mbit * 1e6 / 8 * PAYLOAD, LATENCY_S) if mbit else None
        for line in check_communication(config, network):
            print(line)
        return
    print("\n".join([*step_table(), "", *scaling_table(), "", *nodes_table()]))


def step_table() -> Iterator[str]:
    """Images/s of one H100 by batch, expected and in brackets at best, a line a stage of the work."""
    yield f"| images/s on one H100, batch | {' | '.join(map(str, BATCHES))} |"
    yield f"| --- |{' --- |' * len(BATCHES)}"
    for step in STEPS:
        speeds = [[batch / step.step_s(batch, card) / 1000 for card in (EXPECTED, CEILING)] for batch in BATCHES]
        yield f"| {step.name} | {' | '.join(f'{low:.1f}k ({high:.1f}k)' for low, high in speeds)} |"


def scaling_table() -> Iterator[str]:
    """Weak scaling by local batch, with large gradients reduced beside the backward pass and after it."""
    yield f"| weak scaling, images a GPU | {' | '.join(map(str, BATCHES))} | goal |"
    yield f"| --- |{' --- |' * (len(BATCHES) + 1)}"
    for network in NETWORKS:
        for compiled in (False, True):
            shares = [weak_scaling(NOW.step_s(batch, EXPECTED), network, compiled) for batch in BATCHES]
            name = f"{network.name}, {'reduced after a compiled backward pass' if compiled else 'reduced beside it'}"
            yield f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {GOALS[network.ranks]:.0%} |"


def nodes_table() -> Iterator[str]:
    """From half a node to 64 of them: speed, saving, restoring, heartbeats and failures, a line each."""
    alone_s = NOW.step_s(256, EXPECTED)

    def step_s(gpus: int, batch: int) -> float:
        own_s = NOW.step_s(batch, EXPECTED)
        return own_s / weak_scaling(own_s, network_of(gpus), compiled=False)

    def strong(gpus: int) -> float:
        return LARGE_BATCH / step_s(gpus, LARGE_BATCH // gpus)

    rows: dict[str, Callable[[int], str]] = {
        "images in a step, 256 a GPU": lambda gpus: f"{256 * gpus:,}",
        "images/s": lambda gpus: f"{256 * gpus / step_s(gpus, 256) / 1000:,.0f}k",
        "of the speed alone": lambda gpus: f"{alone_s / step_s(gpus, 256):.1%}",
        f"images a GPU in steps of {LARGE_BATCH:,}": lambda gpus: f"{LARGE_BATCH // gpus}",
        f"images/s in steps of {LARGE_BATCH:,}": lambda gpus: f"{strong(gpus) / 1000:,.0f}k",
        "of the speed alone with 256": lambda gpus: f"{strong(gpus) * alone_s / 256 / gpus:.1%}",
        "a save beside training, s": lambda gpus: f"{save_s(gpus):.2f}",
        "a restore, s": lambda gpus: f"{restore_s(gpus):.1f}",
        "requests of heartbeats to the store, 1/s": lambda gpus: f"{2 * gpus:,}",
        "days between two failures": lambda gpus: f"{BETWEEN_FAILURES_H / gpus / 24:,.0f}",
    }
    yield f"| H100 | {' | '.join(map(str, GPUS))} |"
    yield f"| --- |{' --- |' * len(GPUS)}"
    for name, cell in rows.items():
        yield f"| {name} | {' | '.join(map(cell, GPUS))} |"


def check_communication(config: Config, network: Network | None = None, rounds: int = 15) -> list[str]:
    """A step with and without communication, and communication alone, in turn; lines for rank 0, none for others.

    The model says that a step takes between its computation alone, where all but the small gradients is hidden, and
    the sum of both; and, of a given network, how long communication takes.
    """
    from benchmarks.loop_step import LoopStep, random_images
    from hpc_recolor.runtime.distributed import start, stop

    world = start(config.train.device, config.train.threads)
    images = random_images(config, world)
    whole, silent = LoopStep(config, world), _without_communication(LoopStep(config, world))
    sizes = _reduced_sizes(whole)
    ways: dict[str, Callable[[], Any]] = {
        "alone": lambda: silent(images),
        "all-reduces": _all_reduces(sizes, world),
        "step": lambda: whole(images),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-2, rounds):
        for name, way in ways.items():
            taken_s = _time_s(way, world)
            if number >= 0:
                times[name].append(taken_s)
    stop()
    if not world.is_main:
        return []
    alone_s, communication_s, step_s = (median(taken) for taken in times.values())
    of_network = []
    if network:
        predicted_s = sum(network.all_reduce_s(4 * size) for size in sizes)
        of_network = [f"{network.name}: all-reduces are predicted to take {predicted_s * 1000:.0f} ms alone"]
    return [
        f"{world.size} ranks, width {config.model.width}, batch {config.train.batch_size}, medians of {rounds} rounds: "
        f"computation alone {alone_s * 1000:.0f} ms, all-reduces alone {communication_s * 1000:.0f} ms",
        f"a step is predicted to take {alone_s * 1000:.0f} to {(alone_s + communication_s) * 1000:.0f} ms, by how much "
        f"is hidden; it took {step_s * 1000:.0f} ms",
        *of_network,
    ]


def _time_s(way: Callable[[], Any], world: "World") -> float:
    """Time until the last rank is done [s]."""
    import torch

    torch.distributed.barrier()
    synchronize(world.device)
    started_s = time.perf_counter()
    way()
    synchronize(world.device)
    torch.distributed.barrier()
    return time.perf_counter() - started_s


def _without_communication(loop: "LoopStep") -> "LoopStep":
    """The step of a rank that trains for itself, on its share of a batch."""
    for engine in loop.state.engines:
        assert engine._average
        engine._average.is_last_microbatch = False  # its hooks stay on the network
        engine._average = None
    loop.step.world = replace(loop.step.world, size=1)
    return loop


def _reduced_sizes(loop: "LoopStep") -> list[int]:
    """Of all tensors that a step reduces: how many values they have."""
    from hpc_recolor.training.engine.gradients import ALONE_NUMEL

    sizes: list[int] = []
    for engine in loop.state.engines:
        numels = [parameter.numel() for parameter in engine.module.parameters()]
        sizes += [numel for numel in numels if numel >= ALONE_NUMEL]
        sizes.append(sum(numel for numel in numels if numel < ALONE_NUMEL))
    return [*sizes, len(loop.step.verdict)]


def _all_reduces(sizes: Sequence[int], world: "World") -> Callable[[], None]:
    """All that a step reduces, on tensors of the same sizes."""
    import torch
    import torch.distributed as dist

    tensors = [torch.zeros(size, device=world.device) for size in sizes]

    def reduce_all() -> None:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    return reduce_all


if __name__ == "__main__":
    sys.exit(cli.run(app))
