"""Measures a run on its held-out photographs, with networks beside those that train."""

from collections.abc import Callable

import torch
from PIL import Image

from hpc_recolor.data.batches import load_images
from hpc_recolor.data.samples import Samples, Subset
from hpc_recolor.evaluation.figures import sample_grid
from hpc_recolor.evaluation.validation_scores import Scores, score
from hpc_recolor.models.build import build_discriminator, build_generator, place
from hpc_recolor.models.color_space import gray_copy, make_pair, to_images
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import on_main
from hpc_recolor.training.context import RunContext
from hpc_recolor.training.engine.engine_state import WEIGHT, full_state, owned


class Validation:
    """Scores the generator on held-out photographs and saves some of them as colored. All ranks call it together.

    Holds this rank's share of the photographs in memory, and both networks in eval mode. stop_requested: called by all
    ranks together before every batch; True on all ranks interrupts a measurement. interrupted: whether the last one
    was; it is made up for when the run resumes.
    """

    def __init__(self, context: RunContext, held_out: Samples, stop_requested: Callable[[], bool]) -> None:
        self.context, self.stop_requested = context, stop_requested
        self.interrupted = False
        config, world = context.config, context.world
        with torch.random.fork_rng():  # leaves training's random numbers as they were
            self.generator = place(build_generator(config.model, config.data.size), config.model, world.device)
            self.discriminator = place(build_discriminator(config.model), config.model, world.device)
        self.generator.eval()
        self.discriminator.eval()
        mine = range(world.rank, len(held_out), world.size)
        self.images = load_images(Subset(held_out, mine), config.data, world)
        shown = range(min(config.tracking.samples, len(held_out)) if world.is_main else 0)
        self.shown = load_images(Subset(held_out, shown), config.data, world)

    def run_if_due(self) -> None:
        """Measure if tracking.samples_every_images makes it due."""
        if self.is_due():
            self.measure()

    def is_owed(self) -> bool:
        """Whether the run was stopped before it could measure what it had trained. The same on all ranks."""
        return on_main(self.context.world, self._is_missing)

    def measure(self) -> None:
        """Measure and log the scores, unless the run is asked to stop meanwhile."""
        self.context.enter_phase("measuring", self.context.step)
        scores = self._score()
        self.interrupted = scores is None
        if scores and self.context.world.is_main:
            self.context.tracker.log_scores(self.context.images_seen, scores, self._draw())

    def is_due(self) -> bool:
        """Whether the last step makes a measurement due."""
        return self.context.is_due(self.context.config.tracking.samples_every_images)

    def _is_missing(self) -> bool:
        images_seen, metrics = self.context.images_seen, self.context.run.metrics
        if not images_seen or not self.is_due():
            return False
        rows = read_metrics(metrics) if metrics.exists() else []
        return not any(row["kind"] == "held_out" and row.get("images_seen") == images_seen for row in rows)

    def _score(self) -> Scores | None:
        """Scores of the averaged generator, or of the trained one if there is no average; None if interrupted.

        The discriminator uses BatchNorm's running statistics, for real and generated images alike, so that its logits
        for an image depend on no other image; in training, each batch is normalized by statistics of its own.
        """
        config, world, state = self.context.config, self.context.world, self.context.state
        engines = state.engines
        for network, engine in ((self.generator, engines.generator), (self.discriminator, engines.discriminator)):
            fragments = owned(engine, world)
            weights = [fragment.tensors[WEIGHT] for fragment in fragments]
            if state.average and engine is engines.generator:
                weights = state.average.averages
            network.load_state_dict(full_state(engine, list(zip(fragments, weights, strict=True)), world))
        return score(
            self.generator,
            self.discriminator,
            self.images,
            config.model.color,
            config.loss,
            world,
            self.stop_requested,
        )

    @torch.no_grad()
    def _draw(self) -> Image.Image:
        """Save some of the photographs as the generator colored them at the last measurement. On rank 0 alone."""
        color, samples = self.context.config.model.color, self.context.run.samples
        condition, _ = make_pair(self.shown, color)
        colorized = to_images(condition, self.generator(condition), color)
        columns = {"gray": gray_copy(condition, color), "colorized": colorized, "original": self.shown}
        arrays = {caption: images.cpu().numpy() for caption, images in columns.items()}
        self.context.tracker.log_photographs(self.context.images_seen, arrays)
        grid = sample_grid(arrays)
        samples.mkdir(exist_ok=True)
        grid.save(samples / f"images-{self.context.images_seen:012d}.png")
        return grid
