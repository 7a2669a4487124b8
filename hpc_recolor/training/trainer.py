"""The training loop. The clock of everything in it is images seen."""

import sys
from contextlib import nullcontext

import torch

from hpc_recolor.color_space import gray_copy, make_pair, to_pictures
from hpc_recolor.config import Config
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.batches import load_pictures, training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.samples import Subset
from hpc_recolor.data.sets import SampleSets, collect
from hpc_recolor.distributed import World, average_, on_main, start, stop, world_size
from hpc_recolor.errors import UserError
from hpc_recolor.evaluation.figures import sample_grid
from hpc_recolor.evaluation.metrics import score
from hpc_recolor.models.norm import averaged_statistics
from hpc_recolor.progress import show_progress
from hpc_recolor.run_folder import RunFolder, claim, find
from hpc_recolor.training import checkpoint
from hpc_recolor.training.engine import build_engines, set_lr
from hpc_recolor.training.step import StepLosses, gan_step, learning_rate
from hpc_recolor.training.tracking import Tracker


def train(config: Config) -> RunFolder:
    """Train the run of a config to its end, from its newest checkpoint if it has one. Returns its folder.

    Every rank calls it. Raises UserError, with nothing written, if config, photographs, ranks or checkpoint do not fit.
    """
    _check_ranks(config)
    world = start(config.train.device, config.train.threads)
    try:
        photos = _collect_photos(config, world)
        run = on_main(world, lambda: find(config))
        Trainer(config, world, photos, run).run_loop()
    finally:
        stop()
    return run


class Trainer:
    """Two engines, a stream of batches, and what is due when."""

    def __init__(self, config: Config, world: World, photos: SampleSets, run: RunFolder) -> None:
        self.config, self.world, self.photos, self.run = config, world, photos, run
        self.engines = build_engines(config, world)
        self.images_seen = checkpoint.restore(run, self.engines, photos.fingerprint, world)
        # Whole batches: the last runs on into the next shuffle, so every photograph is seen `epochs` times or more.
        self.images_total = -(-config.train.epochs * len(photos.train) // self.batch_size) * self.batch_size
        mine = range(world.rank, len(photos.held_out), world.size)
        self.held_out = load_pictures(Subset(photos.held_out, mine), config.data, world)
        shown = range(min(config.tracking.samples, len(photos.held_out)) if world.is_main else 0)
        self.shown = load_pictures(Subset(photos.held_out, shown), config.data, world)
        self.losses_sum = torch.zeros(len(StepLosses._fields), device=world.device)
        self.steps_unread = 0
        self.tracker: Tracker | None = None

    @property
    def batch_size(self) -> int:
        """Images in a step, over all ranks."""
        return self.config.train.batch_size

    def run_loop(self) -> None:
        """Step through the stream to the end; log, measure and save whenever due, and at the end."""
        if self.images_seen > self.images_total:
            raise UserError(
                f"train.epochs={self.config.train.epochs}: {self.run.path} has already seen {self.images_seen} images, "
                f"more than these {self.images_total}; use more epochs or a new run.name"
            )
        on_main(self.world, lambda: claim(self.run, self.config))
        if self.images_seen == self.images_total:
            return self._say(f"{self.run.path} is finished; a larger train.epochs goes on with it")
        self._say(
            f"training {self.run.path} on {self.world.size} x {self.world.device.type}: {len(self.photos.train)} "
            f"photographs, {len(self.photos.held_out)} held out, from image {self.images_seen} to {self.images_total}"
        )
        order = SampleOrder(len(self.photos.train), self.config.run.seed)
        batches = training_batches(
            self.photos.train, order, self.images_seen, self.batch_size, self.config.data, self.world
        )
        self.tracker = self._open_tracker() if self.world.is_main else None
        with self.tracker or nullcontext():
            while self.images_seen < self.images_total:
                self.run_step(next(batches))
                if self._due(self.config.tracking.log_every_steps * self.batch_size):
                    self.log()
                if self._due(self.config.tracking.samples_every_images):
                    self.measure()
                if self._due(self.config.checkpoint.every_images):
                    self.save()

    def run_step(self, batch: Batch) -> None:
        """Train both networks on one batch; nothing is read back from the device."""
        set_lr(self.engines, self._lr())
        condition, target = make_pair(batch.rgb_u8_NHWC, self.config.model.color)
        self.losses_sum += torch.stack(gan_step(self.engines, condition, target, self.config.loss))
        self.images_seen += self.batch_size
        self.steps_unread += 1

    def log(self) -> None:
        """Read the losses, as means over the ranks and over the steps since the last reading."""
        mean = self.losses_sum / self.steps_unread
        average_(self.world, [mean])
        self.losses_sum.zero_()
        self.steps_unread = 0
        if self.tracker:
            self.tracker.log_step(self.images_seen, StepLosses(*mean.tolist()), self._lr())

    def measure(self) -> None:
        """Score the generator on the held-out photographs, and draw some of them."""
        generator, color = self.engines.generator.module, self.config.model.color
        with averaged_statistics(generator, self.world), torch.no_grad():
            scores = score(generator, self.held_out, color, self.world)
            if self.tracker:
                self._draw_samples()
        if self.tracker:
            self.tracker.log_scores(self.images_seen, scores)

    def save(self) -> None:
        """Commit a checkpoint. Losses are read before, so that a resumed run logs what this one does."""
        if self.steps_unread:
            self.log()
        keep, fingerprint = self.config.checkpoint.keep, self.photos.fingerprint
        checkpoint.save(self.run, self.engines, self.images_seen, fingerprint, keep, self.world)
        if self.tracker:
            self.tracker.restart_clock(self.images_seen)

    def _draw_samples(self) -> None:
        color = self.config.model.color
        condition, _ = make_pair(self.shown, color)
        colorized = to_pictures(condition, self.engines.generator.module(condition), color)
        columns = {"gray": gray_copy(condition, color), "colorized": colorized, "original": self.shown}
        grid = sample_grid({caption: pictures.cpu().numpy() for caption, pictures in columns.items()})
        self.run.samples.mkdir(exist_ok=True)
        grid.save(self.run.samples / f"images-{self.images_seen:012d}.png")

    def _lr(self) -> float:
        train = self.config.train
        return learning_rate(train.lr, self.images_seen, self.images_total, train.lr_constant)

    def _due(self, every_images: int) -> bool:
        before = self.images_seen - self.batch_size
        return self.images_seen >= self.images_total or self.images_seen // every_images > before // every_images

    def _open_tracker(self) -> Tracker:
        return Tracker(self.run, self.config, self.images_seen, self.images_total, len(self.photos.train))

    def _say(self, line: str) -> None:
        if self.world.is_main:
            print(line)


def _check_ranks(config: Config) -> None:
    batch_size, ranks = config.train.batch_size, world_size()
    if batch_size % ranks:
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by world size {ranks}: use a multiple of {ranks}"
        )


def _collect_photos(config: Config, world: World) -> SampleSets:
    with show_progress("checking photographs", shown=world.is_main) as progress:
        photos = collect(config, world, progress)
    if photos.bad and world.is_main:
        print(f"left out {len(photos.bad)} photographs that cannot be read:", file=sys.stderr)
        for bad in photos.bad:
            print(f"  {bad.path}: {bad.reason}", file=sys.stderr)
    if config.train.batch_size > len(photos.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size} is larger than the data set of {len(photos.train)} "
            f"photographs to learn from: use {len(photos.train)} or less"
        )
    return photos
