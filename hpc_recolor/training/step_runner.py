"""How a step runs: operation by operation, or as a CUDA graph, which the GPU runs without the host."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.runtime.distributed import World, allow_tf32, before_stop
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.engine.convolution_types import ConvolutionTypes
from hpc_recolor.training.schedule import Phase

# Runs before a capture, in which cuDNN and Triton choose their kernels, and NCCL connects.
WARM_UP_RUNS = 3


def is_capturable(config: Config, world: World) -> bool:
    """Whether train.graph allows graphs, and nothing in a step needs the host: DeepSpeed's step reads the device, parts
    of a batch set random states, and synchronized BatchNorm waits for other ranks' sizes."""
    return (
        config.train.graph == "auto"
        and world.device.type == "cuda"
        and not config.deepspeed.zero_stage
        and config.train.accumulate == 1
        and config.model.norm != "sync_batch"
    )


def set_up_gpu(config: Config, world: World) -> None:
    """Set how this process's GPU, if it has one, computes: with or without TF32, by cuDNN's fastest algorithms."""
    if world.device.type == "cuda":
        allow_tf32(config.train.tf32)
        torch.backends.cudnn.benchmark = True  # all batches have one shape


class StepRunner:
    """Runs steps as graphs where they can be captured. All ranks use it together.

    say: called after the first step with a line about the type that convolutions were computed in.
    """

    def __init__(self, step: DeviceStep, say: Callable[[str], None]) -> None:
        self._run = StepGraphs(step).run if is_capturable(step.config, step.world) else step.body
        self._say = say
        self._uses_tf32 = step.config.train.tf32 and step.config.train.precision == "fp32" and step.flags.is_cuda
        self._has_said = step.config.train.compile  # compiled networks hide their operations

    def run(self, rgb_u8_NHWC: Tensor, phase: Phase, picks: Tensor | None = None) -> None:
        """As DeviceStep.body."""
        if self._has_said:
            return self._run(rgb_u8_NHWC, phase, picks)
        with ConvolutionTypes() as types:
            self._run(rgb_u8_NHWC, phase, picks)
        self._say(f"computing in {types.describe()}{' (factors rounded to TF32)' if self._uses_tf32 else ''}")
        self._has_said = True


class StepGraphs:
    """The step as one CUDA graph of each phase, captured when it is first needed. All ranks use it together."""

    def __init__(self, step: DeviceStep) -> None:
        self._step = step
        self._batch: Tensor | None = None  # what differs from step to step, where graphs read it
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Phase, torch.cuda.CUDAGraph] = {}
        before_stop(self._graphs.clear)  # NCCL waits for graphs that use it when it is left (pytorch/pytorch#115388)

    def run(self, rgb_u8_NHWC: Tensor, phase: Phase, picks: Tensor | None = None) -> None:
        """As DeviceStep.body."""
        batch = rgb_u8_NHWC if picks is None else picks
        if self._batch is None:
            self._batch = batch.clone()
        else:
            self._batch.copy_(batch, non_blocking=True)
        if phase not in self._graphs:
            inputs = (self._batch, None) if picks is None else (rgb_u8_NHWC, self._batch)
            self._graphs[phase] = self._capture(phase, *inputs)
        self._graphs[phase].replay()

    def _capture(self, phase: Phase, rgb_u8_NHWC: Tensor, picks: Tensor | None) -> torch.cuda.CUDAGraph:
        body = partial(self._step.body, rgb_u8_NHWC, phase, picks)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), self._step.without_effect():
            for _ in range(WARM_UP_RUNS):
                body()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Not "global", the default: loaders allocate memory in other threads meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            body()
        return graph
