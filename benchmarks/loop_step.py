"""The step as the training loop makes it, on one batch of random images: what benchmarks time."""

import torch

from hpc_recolor.config import Config
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.agreement import Flags, Verdicts
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.run_state import RunState
from hpc_recolor.training.schedule import Phase
from hpc_recolor.training.step_runner import StepRunner, set_up_gpu


class LoopStep:
    """Both updates through the engines, colors, average, agreement, and the verdict that is read two steps late.

    All ranks use it together. Whatever the config asks for holds: precision, layout, torch.compile, CUDA graph.
    """

    def __init__(self, config: Config, world: World) -> None:
        set_up_gpu(config, world)
        self.config = config
        self.state = RunState.initial(config, world)
        engines, average = self.state.engines, self.state.average
        self.step = DeviceStep(config, world, engines, average, self.state.counters.losses_sum)
        self.runner = StepRunner(self.step, say=lambda line: None)
        self.verdicts = Verdicts()
        self.steps = 0

    def __call__(self, rgb_u8_NHWC: torch.Tensor, picks: torch.Tensor | None = None) -> None:
        """Start a step on this rank's images, uint8 (N,H,W,3), on the device. picks: see Batch."""
        self.steps += 1
        self.state.engines.set_lr(self.config.train.lr)
        self.step.set_inputs(Flags(), average_share=0.01)
        self.runner.run(rgb_u8_NHWC, Phase.BOTH, picks)
        self.verdicts.send(self.steps, self.step.verdict)
        self.verdicts.receive()


def random_images(config: Config, world: World) -> torch.Tensor:
    """A rank's share of a batch, uint8 (N,H,W,3), on its device; the same in every call."""
    draw = torch.Generator().manual_seed(world.rank)
    shape = (config.train.batch_size // world.size, config.data.size, config.data.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(world.device)
