"""`python -m benchmarks.first_gpu`: what to measure first on a GPU that this project has not run on, in nine minutes.

Each part is a process of its own with a time limit, and adds a line of JSON to `--out` as soon as it has a figure. One
whose packages are missing is skipped and names them; this file needs torch, numpy and Pillow. `--without_gpu` rehearses
all parts on a CPU, at a small size.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_suite import Part, run, summary

TRAINING = ("deepspeed", "pydantic", "yaml")
ROUNDS = 5


@dataclass(frozen=True)
class Scale:
    """How much is measured: the goal's sizes on a GPU, small ones in a rehearsal.

    product: side of a square matrix; copy_bytes: of a copy; width, size_px: of the networks and images; batches: images
    of a step; steps: in a round; convolutions_in: a type, since CPUs may need minutes for bfloat16.
    """

    device: str
    product: int
    copy_bytes: int
    width: int
    size_px: int
    batches: tuple[int, ...]
    steps: int
    convolutions_in: torch.dtype

    @property
    def goal_batch(self) -> int:
        """The batch that the goal is set for, or the rehearsal's largest."""
        return 256 if 256 in self.batches else self.batches[-1]


GPU = Scale(
    "cuda", 8192, 2**30, width=64, size_px=128, batches=(32, 128, 256, 512), steps=10, convolutions_in=torch.bfloat16
)
REHEARSAL = Scale("cpu", 256, 2**22, width=2, size_px=32, batches=(2, 4), steps=1, convolutions_in=torch.float32)

# ---- timing ----


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], times: int) -> float:
    """The median over rounds of the time that one of `times` calls in a row takes, after a round of warming up [s]."""
    found = []
    for _ in range(ROUNDS + 1):
        synchronize()
        started_s = time.perf_counter()
        for _ in range(times):
            call()
        synchronize()
        found.append((time.perf_counter() - started_s) / times)
    return median(found[1:])


# ---- parts; each yields rows, the keys of which say their units ----

Rows = Iterator[dict[str, Any]]


def machine(scale: Scale) -> Rows:
    """What the card can do: a copy in its memory, and a product of large matrices in bfloat16."""
    from benchmarks.machine import large_product

    source = torch.empty(scale.copy_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    copied_s = seconds(lambda: target.copy_(source), 10)
    yield {"copy_TB_per_s": 2 * scale.copy_bytes / copied_s / 1e12}
    product, tflop = large_product(torch.device(scale.device), torch.bfloat16, scale.product)
    yield {"product_side": scale.product, "TFLOP_per_s": tflop / seconds(product, 10)}


def precision(scale: Scale) -> Rows:
    """The types that convolutions compute in, and the kernels of three steps by the time that they take."""
    from torch.profiler import ProfilerActivity, profile

    from hpc_recolor.training.engine.convolution_types import ConvolutionTypes

    train = Training(scale, scale.goal_batch, graph="off")
    with ConvolutionTypes() as types:
        train()
    yield {"convolutions": {str(dtype): count for dtype, count in types.seen.items()}}
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scale.device == "cuda" else [])]
    with profile(activities=kinds) as found:
        for _ in range(3):
            train()
        synchronize()
    by = "self_cuda_time_total" if scale.device == "cuda" else "self_cpu_time_total"
    events = found.key_averages()
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    yield {"launches_per_step": launches / 3}
    print(events.table(sort_by=by, row_limit=25, max_name_column_width=70))


def convolutions(scale: Scale) -> Rows:
    """Every convolution of both networks, forward and backward in bfloat16, with and without cuDNN's search."""
    for batch in (scale.batches[0], scale.goal_batch):
        for search in (False, True):
            torch.backends.cudnn.benchmark = search
            total_s = total_flops = 0.0
            for layer, shape in shapes_of_convolutions(scale, batch):
                taken_s, flops = time_convolution(layer, shape, scale)
                total_s, total_flops = total_s + taken_s, total_flops + flops
            yield {"batch": batch, "search": search, "TFLOP_per_s": total_flops / total_s / 1e12, "ms": total_s * 1e3}


def steps(scale: Scale) -> Rows:
    """The training step as the loop makes it, eagerly; and with the host waiting for each."""
    for batch in scale.batches:
        train = Training(scale, batch, graph="off")

        def waiting(train: Training = train) -> None:
            train()
            train.loop.step.verdict.tolist()

        for name, call in (("no waits", train), ("a wait a step", waiting)):
            yield {"batch": batch, "how": name, "images_per_s": batch / seconds(call, scale.steps)}


def graph(scale: Scale) -> Rows:
    """The step as a CUDA graph: its speed, and its weights against those of the eager step; no step may wait."""
    for batch in scale.batches:
        eager, captured = Training(scale, batch, graph="off"), Training(scale, batch)
        for step in range(3):
            for train in (eager, captured):
                torch.manual_seed(step)  # of dropout
                train()
        yield {"batch": batch, "largest_difference_of_a_weight": eager.largest_difference(captured)}
        if scale.device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            eager()
            captured()
            torch.cuda.set_sync_debug_mode("default")
        yield {"batch": batch, "images_per_s": batch / seconds(captured, scale.steps)}


def compiled(scale: Scale) -> Rows:
    """Both networks compiled, with Inductor's choice of layout and with channels_last forced, inside the graph."""
    for forced in (False, True):
        torch.compiler.reset()
        with compiling(scale, {"force_layout_optimization": forced}):
            train = Training(scale, scale.goal_batch, compile=True)
        started_s = time.perf_counter()
        train()
        synchronize()
        compiled_s = time.perf_counter() - started_s
        images_per_s = scale.goal_batch / seconds(train, scale.steps)
        yield {"layout_forced": forced, "images_per_s": images_per_s, "compile_s": compiled_s}


def kernels(scale: Scale) -> Rows:
    """Our kernels against plain PyTorch, on batches of the goal's size."""
    import recolor_kernels as ops

    batch, side, device = scale.goal_batch, scale.size_px, scale.device
    rgb = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    lightness, ab = ops.rgb_to_lab(rgb)
    calls: dict[str, Callable[[Any], object]] = {
        "rgb_to_lab": lambda impl: ops.rgb_to_lab(rgb, impl=impl),
        "lab_to_rgb_u8": lambda impl: ops.lab_to_rgb_u8(lightness, ab, impl=impl),
        "l1_loss": lambda impl: ops.l1_loss(ab, ab.flip(0), impl=impl),
        "color_metrics": lambda impl: ops.color_metrics(rgb, rgb.flip(0), impl=impl),
    }
    for name, call in calls.items():
        auto_s, reference_s = (seconds(partial(call, impl), 10) for impl in ("auto", "reference"))
        yield {"op": name, "us": auto_s * 1e6, "reference_over_this": reference_s / auto_s}
    yield from norm_act(scale)


def norm_act(scale: Scale) -> Rows:
    """Norm and activation of the largest features, forward and backward: one op against torch's layers, as they are and
    compiled. On a CPU all are the same."""
    from hpc_recolor.models.fused import FusedSequential

    to: dict[str, Any] = {"device": scale.device, "dtype": torch.bfloat16}
    layers = nn.BatchNorm2d(scale.width).to(scale.device), nn.LeakyReLU(0.2)
    shape = (scale.goal_batch, scale.width, scale.size_px // 2, scale.size_px // 2)
    features = torch.randn(shape).to(**to, memory_format=torch.channels_last).requires_grad_()

    def both(network: nn.Module) -> None:
        output = network(features)
        output.backward(output.detach())

    networks: dict[str, nn.Module] = {"fused": FusedSequential(*layers), "torch": nn.Sequential(*layers)}
    if scale.device == "cuda":
        networks["compiled"] = nn.Sequential(*layers)
        networks["compiled"].compile()
    for name, network in networks.items():
        taken_s = seconds(partial(both, network), 10)
        yield {"op": f"norm_act, {name}", "us": taken_s * 1e6, "TB_per_s": 8 * features.nbytes / taken_s / 1e12}


def snapshot(scale: Scale) -> Rows:
    """A checkpoint's copy: within the device, to pageable and to pinned memory."""
    state = torch.empty(int(0.7 * scale.copy_bytes), dtype=torch.uint8, device=scale.device)
    targets = {"device": torch.empty_like(state), "pageable": torch.empty(state.shape, dtype=torch.uint8)}
    if scale.device == "cuda":
        targets["pinned"] = torch.empty(state.shape, dtype=torch.uint8, pin_memory=True)
    for name, target in targets.items():
        taken_s = seconds(partial(target.copy_, state, non_blocking=True), 3)
        yield {"to": name, "GB_per_s": len(state) / taken_s / 1e9}


# The most important first: packages that a part needs, its time limit [s], and lines of it in the summary.
PARTS: dict[str, tuple[Callable[[Scale], Rows], tuple[str, ...], int, int]] = {
    "machine": (machine, (), 30, 2),
    "precision": (precision, TRAINING, 60, 2),
    "steps": (steps, TRAINING, 60, 8),
    "graph": (graph, TRAINING, 80, 8),
    "convolutions": (convolutions, TRAINING, 80, 4),
    "compiled": (compiled, TRAINING, 150, 2),
    "kernels": (kernels, ("triton",), 50, 7),
    "snapshot": (snapshot, (), 30, 3),
}

# ---- what parts share ----


@contextmanager
def compiling(scale: Scale, options: dict[str, bool]) -> Iterator[None]:
    """Networks that are built within it are compiled by Inductor with these options.

    A rehearsal traces them only, as a C++ compiler would take minutes.
    """
    original = nn.Module.compile

    def compile_so(network: nn.Module, **_: Any) -> None:
        how: dict[str, Any] = {"options": options} if scale.device == "cuda" else {"backend": "aot_eager"}
        original(network, **how)

    setattr(nn.Module, "compile", compile_so)  # noqa: B010
    try:
        yield
    finally:
        setattr(nn.Module, "compile", original)  # noqa: B010


class Training:
    """The loop's own step on random images, in bfloat16 and channels_last, with all that `train` is given."""

    def __init__(self, scale: Scale, batch: int, **train: Any) -> None:
        from benchmarks.loop_step import LoopStep, random_images
        from hpc_recolor.config_file import load_config
        from hpc_recolor.runtime.distributed import start

        goal = {"batch_size": batch, "precision": "bf16", "channels_last": True, "device": scale.device}
        model = {"width": scale.width, "color": "rgb"}
        config = load_config(None, {"data": {"size": scale.size_px}, "model": model, "train": goal | train})
        world = start(scale.device, threads=1)
        self.loop = LoopStep(config, world)
        self.images = random_images(config, world)

    def __call__(self) -> None:
        """Start a step."""
        self.loop(self.images)

    def largest_difference(self, other: "Training") -> float:
        """Between a weight of the generators."""
        pairs = zip(
            *(list(each.loop.state.engines.generator.module.parameters()) for each in (self, other)), strict=True
        )
        return max(float((one - two).detach().abs().max()) for one, two in pairs)


def shapes_of_convolutions(scale: Scale, batch: int) -> list[tuple[nn.Module, torch.Size]]:
    """The convolutions of both networks, and the shapes of their inputs."""
    from hpc_recolor.config import ModelConfig
    from hpc_recolor.models.build import build_discriminator, build_generator

    model = ModelConfig(width=scale.width, color="rgb")
    found: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append((module, inputs[0].shape))

    with torch.device("meta"):
        generator, discriminator = build_generator(model, scale.size_px), build_discriminator(model)
        for network in (generator, discriminator):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.register_forward_pre_hook(note)
        condition = torch.empty(batch, 1, scale.size_px, scale.size_px)
        discriminator(condition, generator(condition))
    return found.copy()  # the hooks stay, and add to it


def time_convolution(layer: nn.Module, shape: torch.Size, scale: Scale) -> tuple[float, float]:
    """Time of a forward and backward pass [s], and its floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    to: dict[str, Any] = {"device": scale.device, "dtype": scale.convolutions_in, "memory_format": torch.channels_last}
    real = layer.to_empty(device=scale.device).to(**to)
    images = torch.randn(shape).to(**to).requires_grad_()
    nn.init.normal_(real.weight, std=0.02)  # type: ignore[arg-type]

    def both() -> None:
        output = real(images)
        output.backward(output.detach())

    with FlopCounterMode(display=False) as counter:
        both()
    return seconds(both, 3), float(counter.get_total_flops())


# ---- command ----


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.first_gpu", allow_abbrev=False, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("first-gpu.jsonl"), help="file that results are added to")
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--without_gpu", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.part:
        run_part(given.part, REHEARSAL if given.without_gpu else GPU, given.out)
        return 0
    if not torch.cuda.is_available() and not given.without_gpu:
        parser.error("torch finds no GPU here: check nvidia-smi, or rehearse with --without_gpu")
    arguments = ("--out", str(given.out), *(["--without_gpu"] if given.without_gpu else []))
    parts = [
        Part(name, ("benchmarks.first_gpu", "--part", name, *arguments), needs, limit_s, shown)
        for name, (_, needs, limit_s, shown) in PARTS.items()
        if given.only in name
    ]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    outcomes = [run(part) for part in parts]
    print("\n" + "\n".join(summary(f"{card}, torch {torch.__version__}", outcomes)))
    return int(any(outcome.failed for outcome in outcomes))


def run_part(name: str, scale: Scale, out: Path) -> None:
    """Measure a part; print each row and add it to a file, with the card and the versions, as soon as it is there."""
    from benchmarks.machine import describe_machine

    if scale is REHEARSAL:
        torch.set_num_threads(1)  # small tensors, and other programs may run
    where = {"part": name, "machine": describe_machine()}
    for row in PARTS[name][0](scale):
        print(name, json.dumps(row), flush=True)
        with out.open("a") as file:
            file.write(json.dumps(where | row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
