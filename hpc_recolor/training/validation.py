"""Measures a run on its held-out photographs, with networks beside those that train."""

from collections.abc import Callable

import torch
from PIL import Image

from hpc_recolor.config import Config
from hpc_recolor.data.batches import load_images
from hpc_recolor.data.samples import Samples, Subset
from hpc_recolor.evaluation.figures import sample_grid
from hpc_recolor.evaluation.validation_scores import Scores, score
from hpc_recolor.models.build import build_discriminator, build_generator, place
from hpc_recolor.models.color_space import gray_copy, make_pair, to_images
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.engine.deepspeed_engine import Engines
from hpc_recolor.training.engine.engine_state import WEIGHT, owned, whole


class Evaluator:
    """The held-out photographs, this rank's share of them in memory, and both networks in eval mode."""

    def __init__(self, held_out: Samples, config: Config, world: World) -> None:
        self.color, self.loss, self.world = config.model.color, config.loss, world
        with torch.random.fork_rng():  # training draws what it would have drawn
            self.generator = place(build_generator(config.model, config.data.size), config.model, world.device)
            self.discriminator = place(build_discriminator(config.model), config.model, world.device)
        self.generator.eval()
        self.discriminator.eval()
        mine = range(world.rank, len(held_out), world.size)
        self.pictures = load_images(Subset(held_out, mine), config.data, world)
        shown = range(min(config.tracking.samples, len(held_out)) if world.is_main else 0)
        self.shown = load_images(Subset(held_out, shown), config.data, world)

    def measure(self, engines: Engines, average: MovingAverage | None, shall_stop: Callable[[], bool]) -> Scores | None:
        """Scores of the averaged generator, or of the trained one if there is no average. All ranks together.

        The discriminator judges with BatchNorm's running statistics, of real and generated pictures alike, so that its
        word on a picture depends on no other picture; in training, each batch has statistics of its own.

        shall_stop: asked by all ranks together before every batch; if it says yes, the result is None.
        """
        for network, engine in ((self.generator, engines.generator), (self.discriminator, engines.discriminator)):
            fragments = owned(engine, self.world)
            weights = [fragment.tensors[WEIGHT] for fragment in fragments]
            if average and engine is engines.generator:
                weights = average.averages
            network.load_state_dict(whole(engine, list(zip(fragments, weights, strict=True)), self.world))
        return score(self.generator, self.discriminator, self.pictures, self.color, self.loss, self.world, shall_stop)

    @torch.no_grad()
    def draw(self, run: RunFolder, images_seen: int) -> Image.Image:
        """Draw some of the photographs as the generator colored them at the last measurement. Rank 0 alone has them."""
        condition, _ = make_pair(self.shown, self.color)
        colorized = to_images(condition, self.generator(condition), self.color)
        columns = {"gray": gray_copy(condition, self.color), "colorized": colorized, "original": self.shown}
        grid = sample_grid({caption: pictures.cpu().numpy() for caption, pictures in columns.items()})
        run.samples.mkdir(exist_ok=True)
        grid.save(run.samples / f"images-{images_seen:012d}.png")
        return grid
