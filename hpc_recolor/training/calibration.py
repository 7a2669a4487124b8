"""BatchNorm's statistics of averaged weights, measured after training."""

from itertools import islice

import torch
from torch import Tensor, nn

from hpc_recolor.config import Config
from hpc_recolor.data.batches import training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.sets import collect
from hpc_recolor.models.build import build_generator
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.progress import show_progress

IMAGES = 1024


def calibrated(config: Config, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A generator's state dict with the statistics that its own weights have, in batches as in training, over the first
    IMAGES samples or a little more.

    Those that a run tracks are of the last few batches, and of the weights of the last steps where the averaged ones
    are exported (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). Statistics of a fixed backbone stay. In this
    process alone, on the CPU. Raises UserError if the photographs are missing.
    """
    generator = build_generator(config.model, config.data.size)
    generator.load_state_dict(weights)
    if not _measure_from_now_on(generator):
        return weights
    alone = World(0, 1, 0, torch.device("cpu"))
    samples, per_batch = collect(config, alone).train, config.train.batch_size
    order, count = SampleOrder(len(samples), config.run.seed), -(-IMAGES // per_batch)
    batches = training_batches(samples, order, 0, per_batch, config.data, alone)
    with torch.no_grad(), show_progress("measuring BatchNorm's statistics") as progress:
        for number, batch in enumerate(islice(batches, count)):
            generator(make_pair(batch.rgb_u8_NHWC, config.model.color)[0])
            progress((number + 1) * per_batch, count * per_batch)
    return generator.state_dict()


def _measure_from_now_on(generator: nn.Module) -> bool:
    """Let BatchNorm layers, but no fixed ones, take the mean of the statistics of all batches to come; False if there
    are none. Dropout and all else is as in evaluation."""
    generator.train()
    layers = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    generator.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all
        layer.train()
    return bool(layers)
