"""How often the colors of the photographs fall into each bin of ab, by which the loss weighs them."""

from contextlib import closing
from itertools import islice

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hpc_recolor.config import Config
from hpc_recolor.data.batches import training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.samples import Samples
from hpc_recolor.models.color_bins import ColorBins
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.runtime.distributed import World

IMAGES = 2048


def set_bin_weights(bins: ColorBins, config: Config, samples: Samples, world: World) -> None:
    """Set the weights of bins by the first IMAGES samples of a run, or by all if there are fewer.

    All ranks call it together, and each counts its share; all get the same weights, on any number of ranks. Raises
    RankError as `training_batches` does.
    """
    data, per_batch = config.data.model_copy(update={"cache": "none"}), config.train.batch_size
    order = SampleOrder(len(samples), config.run.seed)
    counts = torch.zeros(len(bins.centers), dtype=torch.int64, device=world.device)
    with closing(training_batches(samples, order, 0, per_batch, data, world)) as batches:
        for batch in islice(batches, -(-min(IMAGES, len(samples)) // per_batch)):
            _, ab = make_pair(batch.rgb_u8_NHWC, config.model.color)
            for image in torch.split(F.avg_pool2d(ab, config.model.chroma_stride), 1):  # each takes pixels x bins
                counts += bins.count(image)
    if world.size > 1:
        dist.all_reduce(counts)
    bins.rebalance(counts, config.loss.rebalancing)
