"""`python -m benchmarks.launches`: kernels that a training step launches on one GPU, counted on a CPU, by phase, and
the memory traffic of both networks."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch  # noqa: TID251, of what asks whether there is a GPU

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_recolor import cli
from hpc_recolor.config import ColorName, Config, ModelConfig
from hpc_recolor.config_file import load_config, merge
from hpc_recolor.runtime.distributed import World

app = cli.command("benchmarks.launches")

# What is counted does not depend on the width of the networks and the size of a batch.
SMALL = {"model": {"width": 8}, "train": {"batch_size": 2, "device": "cpu", "threads": 1}}
# Ops that only allocate, or look at memory in another way, beside those that torch declares to be views.
WITHOUT_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::promote_types", "profiler::", "prim::")
# Ops of several kernels: torch's as read in aten/src/ATen/native/cuda/Normalization.cu, for channels_last.
KERNELS = {
    "aten::native_batch_norm": 3,
    "aten::native_batch_norm_backward": 2,
    "recolor_kernels::norm_statistics": 2,
    "recolor_kernels::norm_act_backward": 3,
}
# Tensors among their arguments, by place, that these read twice: for sums, and for what is made of them.
READ_TWICE = {
    "aten::native_batch_norm": (0,),
    "aten::native_batch_norm_backward": (0, 1),
    "recolor_kernels::norm_act_backward": (1, 1),  # and its part of the first, which is as large
}


@app.default
def launches(*, flags: cli.ConfigFlags = cli.NO_FLAGS) -> None:
    """Count the launches of a step at ZeRO 0 on one rank, by phase; a lower bound.

    A fused op counts as one launch, as does each part of a convolution's backward pass, but norms as their kernels;
    losses and color conversion are counted as their references, which have more. The host reads nothing in a step:
    tests/training/test_device_step.py.
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
    moved = network_traffic(config.model, config.data.size)
    print(f"both networks move {moved / 1e6:.1f} MB an image in bfloat16 and channels_last, outside of convolutions")


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
    return KERNELS.get(name, 1)


def _is_fused(args: tuple[Any, ...]) -> bool:
    """Whether one launch serves all tensors: all of one type, and those of each place of one shape."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    one_type = len({tensor.dtype for tensors in lists for tensor in tensors}) == 1
    return one_type and all(len({tensor.shape for tensor in place}) == 1 for place in zip(*lists, strict=True))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it, networks do what they do on GPUs, norm_act as an op."""
    from hpc_recolor.models import fused, unet

    kernels: Any = sys.modules["recolor_kernels.norm_act"]
    with ExitStack() as stack:
        stack.enter_context(patch.object(unet, "activates_apart", lambda tensor: True))
        stack.enter_context(patch.object(fused, "is_on_gpu", lambda tensor: True))
        stack.enter_context(patch.object(kernels, "choose", lambda impl, tensor, *, op, **others: op))
        yield


def count_batch(color: ColorName) -> Counter[str]:
    """Launches that bring a batch from the device cache to the inputs of a step's networks, copies among them."""
    from hpc_recolor.data.batches import picked
    from hpc_recolor.models.color_space import make_pair
    from recolor_kernels import launch

    images, launched = torch.zeros((3, 32, 32, 3), dtype=torch.uint8), LaunchCounter()
    with launched.within("picks"):
        _, picks = picked(images, True, np.arange(2), np.zeros((2, 2)), to_gpu=torch.clone)
        picks = picks.clone()  # to where the step's graph reads it
    with patch.object(launch, "_uses_op", lambda tensor: True), launched.within("batch, colors"):
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


class TrafficCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts bytes that ops other than convolutions read and write, in `bytes`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an op, and run it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::convolution":
            self.bytes += 2 * result.nbytes if args[2] is not None else 0  # the bias is added to it
        elif name == "aten::convolution_backward":
            self.bytes += args[0].nbytes if args[-1][2] else 0
        elif _launches(func, args):
            self.bytes += sum(map(_nbytes, (*args, *(result if isinstance(result, tuple | list) else (result,)))))
            self.bytes += sum(args[place].nbytes for place in READ_TWICE.get(name, ()))
        return result


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0


@as_on_a_gpu()
def network_traffic(model: ModelConfig, size: int) -> float:
    """Memory traffic of both networks in a step, forward and backward, outside of convolutions, in bfloat16 and
    channels_last [bytes an image]. Losses, colors and what does not grow with the batch are left out."""
    few, more = (_traffic_of_batch(model, size, images) for images in (2, 4))
    return (more - few) / 2


def _traffic_of_batch(model: ModelConfig, size: int, images: int) -> int:
    from hpc_recolor.models.build import build_discriminator, build_generator
    from hpc_recolor.models.layout import in_channels_last
    from hpc_recolor.models.shapes import CONDITION_CHANNELS, target_channels

    with FakeTensorMode():
        networks: list[nn.Module] = [build_generator(model, size), build_discriminator(model)]
        for network in networks:  # whose convolutions follow the format of what they are given
            network.forward = torch.autocast("cpu", torch.bfloat16)(network.forward)
        generator, discriminator = networks
        condition = in_channels_last(torch.empty(images, CONDITION_CHANNELS, size, size))
        target = in_channels_last(torch.empty(images, target_channels(model.color), size, size))
        with TrafficCounter() as counted:
            prediction = generator(condition).float()
            judged = [discriminator(condition, image) for image in (prediction.detach(), target)]
            for logits in judged:
                logits.backward(torch.empty_like(logits))
            discriminator.requires_grad_(False)
            logits = discriminator(condition, prediction)
            (of_prediction,) = torch.autograd.grad(logits, prediction, torch.empty_like(logits), retain_graph=True)
            prediction.backward(of_prediction)
    moved: int = counted.bytes
    return moved


if __name__ == "__main__":
    sys.exit(cli.run(app))
