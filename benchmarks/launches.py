"""`python -m benchmarks.launches`: kernels that a training step launches on one GPU, counted on a CPU, by phase."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_recolor import cli
from hpc_recolor.config import ColorName, Config
from hpc_recolor.config_file import load_config, merge
from hpc_recolor.runtime.distributed import World

app = cli.command("benchmarks.launches")

# What is counted does not depend on the width of the networks and the size of a batch.
SMALL = {"model": {"width": 8}, "train": {"batch_size": 2, "device": "cpu", "threads": 1}}
# Ops that only allocate, or look at memory in another way, beside those that torch declares to be views.
WITHOUT_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::promote_types", "profiler::")


@app.default
def launches(*, flags: cli.ConfigFlags = cli.NO_FLAGS) -> None:
    """Count the launches of a step at ZeRO 0 on one rank, by phase; a lower bound.

    A fused op counts as one launch, as does each part of a convolution's backward pass; losses and color conversion are
    counted as their references, which have more. The host reads nothing in a step: tests/training/test_device_step.py.
    With --data.cache device, what brings a batch to the step is counted too.
    """
    from hpc_recolor.runtime.distributed import start, stop

    config = cli.load(None, flags)
    world = start("cpu", 1)
    counted = count(config, world)
    if config.data.cache == "device":
        del counted["colors"]  # which are made in the launch that gathers the batch
        counted = count_batch(config.model.color) + counted
    stop()
    for phase, number in counted.items():
        print(f"{phase:>24} {number:5d}")
    print(f"{'all':>24} {counted.total():5d}")


class LaunchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts launches by the phase that is set."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()
        self.phase = ""

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Count for a phase."""
        self.phase = phase
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an op, and run it."""
        self.counted[self.phase] += _launches(func, args)
        return func(*args, **(kwargs or {}))


def _launches(func: Any, args: tuple[Any, ...]) -> int:
    name = func._schema.name
    if func.is_view or name.startswith(WITHOUT_KERNEL):
        return 0
    if name == "aten::convolution":
        return 1 if args[2] is None else 2  # and the bias
    if name == "aten::convolution_backward":
        return sum(args[-1])
    if name.startswith("aten::_foreach_"):
        return 1 if _is_fused(args) else len(args[0])
    return 1


def _is_fused(args: tuple[Any, ...]) -> bool:
    """Whether one launch serves all tensors: all of one type, and those of each place of one shape."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    one_type = len({tensor.dtype for tensors in lists for tensor in tensors}) == 1
    return one_type and all(len({tensor.shape for tensor in place}) == 1 for place in zip(*lists, strict=True))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it, networks do what they do on GPUs."""
    from hpc_recolor.models import unet

    with _answering_yes(unet, "activates_apart"):
        yield


@contextmanager
def _answering_yes(module: ModuleType, question: str) -> Iterator[None]:
    original = getattr(module, question)
    setattr(module, question, lambda tensor: True)
    try:
        yield
    finally:
        setattr(module, question, original)


def count_batch(color: ColorName) -> Counter[str]:
    """Launches that bring a batch from the device cache to the inputs of a step's networks, copies among them."""
    from hpc_recolor.data.batches import picked
    from hpc_recolor.models.color_space import make_pair
    from recolor_kernels import launch

    images, launched = torch.zeros((3, 32, 32, 3), dtype=torch.uint8), LaunchCounter()
    with launched.within("picks"):
        _, picks = picked(images, True, np.arange(2), np.zeros((2, 2)), to_gpu=torch.clone)
        picks = picks.clone()  # to where the step's graph reads it
    with _answering_yes(launch, "_uses_op"), launched.within("batch, colors"):
        make_pair(images, color, picks=picks)
    return launched.counted


@as_on_a_gpu()
def count(config: Config, world: World) -> Counter[str]:
    """Launches of a step of `config`, in which both networks learn, by phase, in their order. world: of one rank."""
    from hpc_recolor.models.color_space import make_pair
    from hpc_recolor.training.device_step import DeviceStep
    from hpc_recolor.training.run_state import RunState
    from hpc_recolor.training.step import StepLosses, discriminator_step, generator_step

    config = load_config(None, merge(config.model_dump(), SMALL))
    state = RunState.initial(config, world)
    engines, loss, launched = state.engines, config.loss, LaunchCounter()
    step = DeviceStep(config, world, engines, state.average, state.counters.losses_sum)
    size = config.data.size
    rgb_u8_NHWC = torch.zeros((config.train.batch_size, size, size, 3), dtype=torch.uint8)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    with launched.within("colors"):
        condition, target = make_pair(rgb_u8_NHWC, config.model.color, memory_format=memory_format)
    with launched.within("keeping statistics"):
        engines.statistics.keep()
    with launched.within("prediction"):
        prediction = engines.generator(condition)
    with launched.within("discriminator learns"):
        of_discriminator = discriminator_step(engines.discriminator, condition, target, prediction.detach(), loss)
    with launched.within("generator learns"):
        losses = StepLosses(of_discriminator, *generator_step(engines, condition, target, prediction, loss))
    with launched.within("agreement"):
        step._agree()
    with launched.within("taking back, average"):
        step._settle(torch.stack(losses))
    return launched.counted


if __name__ == "__main__":
    sys.exit(cli.run(app))
