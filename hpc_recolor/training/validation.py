"""Measures a run on its held-out photographs, with networks beside those that train."""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpc_recolor.config import Config
from hpc_recolor.data.batches import load_images
from hpc_recolor.data.samples import Samples, Subset
from hpc_recolor.evaluation.validation_scores import Scores, score
from hpc_recolor.models.build import build_discriminator, build_generator, place
from hpc_recolor.models.color_space import gray_copy, make_pair, to_images
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import on_main
from hpc_recolor.training.context import RunContext
from hpc_recolor.training.engine.engine_state import WEIGHT, full_state, owned
from hpc_recolor.training.schedule import validation_interval

# Steps that do not count for a run's speed, as kernels are compiled and chosen in them; and time after them until the
# first validation, if tracking.samples_every_images leaves its intervals to be chosen [s].
WARM_UP_STEPS = 10
FIRST_AFTER_S = 20.0


class SpeedClock:
    """Measures the speed of a run from the end of its first WARM_UP_STEPS steps on, without what is left out."""

    def __init__(self) -> None:
        self._steps, self._start_images, self._start_s = 0, 0, time.monotonic()

    def tick(self, images_seen: int) -> float:
        """Count a step, before which `images_seen` were seen. Returns the time since the clock started [s]."""
        self._steps += 1
        if self._steps <= WARM_UP_STEPS:
            self._start_images, self._start_s = images_seen, time.monotonic()
            return 0.0
        return time.monotonic() - self._start_s

    def leave_out(self, taken_s: float) -> None:
        """Do not count the last `taken_s` seconds, in which the run did something else."""
        self._start_s += taken_s

    def images_per_s(self, images_seen: int) -> float:
        """The speed since the clock started."""
        return (images_seen - self._start_images) / max(1e-9, time.monotonic() - self._start_s)


def evaluated_networks(config: Config, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator in eval mode, with any weights. Leaves training's random numbers as they were."""
    with torch.random.fork_rng():
        generator = place(build_generator(config.model, config.data.size), config.model, device)
        discriminator = place(build_discriminator(config.model), config.model, device)
    return generator.eval(), discriminator.eval()


class Validation:
    """Scores the generator on held-out photographs and saves some of them as colored. All ranks call it together.

    Holds this rank's share of the photographs in memory, and both networks in eval mode. stop_requested: called by all
    ranks together before every batch; True on all ranks interrupts a measurement. interrupted: whether the last one
    was; it is made up for when the run resumes.

    Without tracking.samples_every_images a measurement comes after the first epoch, and one FIRST_AFTER_S after the
    start, by the clock of rank 0. From what that one and the training took, rank 0 then chooses the interval of the
    others, once: checkpoints hold it, so that a resumed run measures where it would have without the stop.
    """

    def __init__(self, context: RunContext, held_out: Samples, stop_requested: Callable[[], bool]) -> None:
        self.context, self.stop_requested = context, stop_requested
        self.interrupted = False
        self._speed = SpeedClock()
        config, world = context.config, context.world
        self.generator, self.discriminator = evaluated_networks(config, world.device)
        mine = range(world.rank, len(held_out), world.size)
        self.images = load_images(Subset(held_out, mine), config.data, world)
        shown = range(min(config.tracking.samples, len(held_out)) if world.is_main else 0)
        self.shown = load_images(Subset(held_out, shown), config.data, world)

    def run_if_due(self, by_time: bool = False) -> None:
        """Measure if the last step makes it due. by_time: whether `is_due_by_time` was true on rank 0."""
        if by_time and not self._interval:
            images_per_s = self._speed.images_per_s(self.context.images_seen)
            self.measure()
            if not self.interrupted:
                self._choose_interval(images_per_s)
        elif self.is_due():
            self.measure()

    def is_due_by_time(self) -> bool:
        """Whether the first measurement is due, by the clock of rank 0. To be called once before every step."""
        if not self.context.world.is_main or self._interval:
            return False
        return self._speed.tick(self.context.images_seen) > FIRST_AFTER_S

    def is_owed(self) -> bool:
        """Whether the run was stopped before it could measure what it had trained. The same on all ranks."""
        return on_main(self.context.world, self._is_missing)

    def measure(self) -> None:
        """Measure and log the scores, unless the run is asked to stop meanwhile."""
        self.context.enter_phase("measuring", self.context.step)
        started_s = time.monotonic()
        scores = self._score()
        self.interrupted = scores is None
        if scores and self.context.world.is_main:
            self.context.tracker.log_scores(self.context.images_seen, scores, self._samples())
        self._speed.leave_out(time.monotonic() - started_s)

    def draw_saved(self) -> None:
        """Draw some of the photographs as the newest checkpoint colors them, without scores. On rank 0 alone.

        It needs no other rank, and logs nothing: a run that is stopped has the rows of one that is not.
        """
        if found := checkpoints.committed(self.context.run):
            weights = checkpoints.evaluation_weights(found[-1], checkpoints.read_manifest(found[-1]))
            self.generator.load_state_dict(weights)
            self.context.tracker.draw_samples(self.context.images_seen, self._samples())

    def is_due(self) -> bool:
        """Whether the last step makes a measurement due, whatever the time."""
        by_time = not self.context.config.tracking.samples_every_images
        return self.context.is_due(self._interval) or (by_time and self.context.ends_first_epoch)

    @property
    def _interval(self) -> int:
        """Images between two measurements; 0 until it is chosen."""
        return self.context.config.tracking.samples_every_images or self.context.state.counters.validation_interval

    def _choose_interval(self, images_per_s: float) -> None:
        counters, tracker, world = self.context.state.counters, self.context.tracker, self.context.world
        started_s = time.monotonic()
        if self._score() is None:  # again, as the first compiles kernels
            return
        taken_s = time.monotonic() - started_s
        counters.validation_interval = on_main(world, lambda: validation_interval(images_per_s, taken_s))
        tracker.print_line(f"  validation every {counters.validation_interval} images from here on")

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
    def _samples(self) -> dict[str, NDArray[np.uint8]]:
        """Some of the photographs as `self.generator` colors them, (N,H,W,3) by caption. On rank 0 alone."""
        color = self.context.config.model.color
        condition, _ = make_pair(self.shown, color)
        colorized = to_images(condition, self.generator(condition), color)
        columns = {"gray": gray_copy(condition, color), "colorized": colorized, "original": self.shown}
        return {caption: images.cpu().numpy() for caption, images in columns.items()}
