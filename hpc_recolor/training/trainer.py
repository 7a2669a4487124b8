"""The training loop. The clock of everything in it is images seen."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple, NoReturn

import torch

from hpc_recolor.config import Config
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.batches import training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.sets import SampleSets, collect
from hpc_recolor.models.color_space import make_pair
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.run_folder.metrics_log import read_metrics
from hpc_recolor.runtime.distributed import World, average_, highest, on_main, start, stop
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import DIVERGED, STOPPED
from hpc_recolor.runtime.progress import show_progress
from hpc_recolor.runtime.signals import PREEMPTION, StopRequest
from hpc_recolor.training import preflight
from hpc_recolor.training.averaging import MovingAverage
from hpc_recolor.training.checkpointer import Saver
from hpc_recolor.training.engine.deepspeed_engine import ZERO_SLOWDOWN, build_engines, set_lr
from hpc_recolor.training.engine.engine_state import owned
from hpc_recolor.training.run_lock import locked
from hpc_recolor.training.run_state import Position, Training, restore
from hpc_recolor.training.schedule import learning_rate
from hpc_recolor.training.step import StepLosses, gan_step
from hpc_recolor.training.tracking.tracker import Tracker
from hpc_recolor.training.validation import Evaluator
from hpc_recolor.training.watchdog.watchdog import Watchdog

Enter = Callable[[str, int], None]


class Agreement(NamedTuple):
    """What all ranks know after a step. Each is true if it is so on any rank."""

    stop: bool
    save: bool
    writing: bool
    discriminator_skipped: bool
    generator_skipped: bool


def train(config: Config, request: StopRequest) -> RunFolder:
    """Train the run of a config to its end, from its newest checkpoint if it has one. Returns its folder.

    Every rank calls it. Raises UserError, with nothing written, if config, photographs, ranks or checkpoint do not
    fit; EarlyEndError, with the state saved, if it is asked to stop, or if losses stay not finite.
    """
    world = start(config.train.device, config.train.threads)
    try:
        with Watchdog(world, config.train.hang_s, config.train.silence_s) as watchdog:
            run = on_main(world, lambda: preflight.check(config, world.size))
            photos = _collect_photos(config, world, watchdog.enter)
            with locked(run, world):
                Trainer(config, world, photos, run, request, watchdog.enter).run_loop()
    finally:
        stop()
    return run


class Trainer:
    """Two engines, a stream of batches, and what is due when."""

    def __init__(
        self,
        config: Config,
        world: World,
        photos: SampleSets,
        run: RunFolder,
        request: StopRequest,
        enter: Enter = lambda phase, step: None,
    ) -> None:
        self.config, self.world, self.photos, self.run = config, world, photos, run
        self.request, self.tell_phase = request, enter
        self.engines = build_engines(config, world)
        half_life = config.train.ema_half_life
        self.average = MovingAverage(owned(self.engines.generator, world), half_life) if half_life else None
        self.position = Position(torch.zeros(len(StepLosses._fields), device=world.device))
        # Whole batches: the last runs on into the next shuffle, so every photograph is seen `epochs` times or more.
        self.images_total = -(-config.train.epochs * len(photos.train) // self.batch_size) * self.batch_size
        self.saver = Saver(run, config, photos.fingerprint, world)
        self.saved_s = time.monotonic()
        self.stopped_measuring = False
        self.tracker: Tracker | None = None
        self.evaluator = Evaluator(photos.held_out, config, world)
        self._enter("restoring")
        if restore(run, self.training, photos.fingerprint, world):
            self.saver.saved_images = self.images_seen

    @property
    def training(self) -> Training:
        """All that a checkpoint holds."""
        return Training(self.engines, self.average, self.position)

    @property
    def batch_size(self) -> int:
        """Images in a step, over all ranks."""
        return self.config.train.batch_size

    @property
    def images_seen(self) -> int:
        """Images that both networks have learned from."""
        return self.position.images_seen

    def run_loop(self) -> None:
        """Step through the stream to the end; log, measure and save whenever due, and at the end."""
        if self.images_seen > self.images_total:
            raise UserError(
                f"train.epochs={self.config.train.epochs}: {self.run.path} has already seen {self.images_seen} images, "
                f"more than these {self.images_total}; use more epochs or a new run.name"
            )
        on_main(self.world, lambda: claim(self.run, self.config))
        owes_measurement = on_main(self.world, self._owes_measurement)
        if self.images_seen == self.images_total and not owes_measurement:
            return self._say(f"{self.run.path} is finished; a larger train.epochs goes on with it")
        self._say(
            f"training {self.run.path} on {self.world.size} x {self.world.device.type}: {len(self.photos.train)} "
            f"photographs, {len(self.photos.held_out)} held out, from image {self.images_seen} to {self.images_total}"
        )
        stage = self.config.deepspeed.zero_stage
        if stage:
            self._say(
                f"deepspeed.zero_stage={stage} spares memory and costs time: on two CPU ranks a step of the U-Net took "
                f"{ZERO_SLOWDOWN[stage]} times as long as at 0, which networks of this size fit into"
            )
        on_main(self.world, self._open_tracker)  # if it cannot be opened, all ranks leave
        with self.tracker or nullcontext(), _telling_full_disks(self.run):
            if owes_measurement:
                self.measure()
            self._train_to_the_end()

    def _train_to_the_end(self) -> None:
        order = SampleOrder(len(self.photos.train), self.config.run.seed)
        self._enter("loading photographs")
        batches = training_batches(
            self.photos.train, order, self.images_seen, self.batch_size, self.config.data, self.world
        )
        if self._shall_stop():
            self.stop_here()
        while self.images_seen < self.images_total:
            self._enter("loading photographs")
            batch = next(batches)
            agreed = self.run_step(batch)
            if self._due(self.config.tracking.log_every_steps * self.batch_size):
                self.log()
            if self._due(self.config.tracking.samples_every_images):
                self.measure()
            if agreed.stop or self.stopped_measuring:
                self.stop_here()
            self.save_if_due(agreed)
        self.finish_saving(must=True)

    def run_step(self, batch: Batch) -> Agreement:
        """Train both networks on one batch, and agree with the other ranks on how it went and what comes next."""
        self._enter("training")
        set_lr(self.engines, self._lr())
        condition, target = make_pair(batch.rgb_u8_NHWC, self.config.model.color)
        losses = gan_step(self.engines, condition, target, self.config.loss, self.config.train.accumulate)
        self.position.images_seen += self.batch_size
        agreed = self._agree()
        if agreed.discriminator_skipped or agreed.generator_skipped:
            self._take_back(agreed)
        else:
            self._take_in(torch.stack(losses))
        self.engines.discriminator.adapt_loss_scale(agreed.discriminator_skipped)
        if not agreed.discriminator_skipped:  # else the generator was held back, whatever its own gradients were
            self.engines.generator.adapt_loss_scale(agreed.generator_skipped)
        return agreed

    def log(self) -> None:
        """Read the losses, as means over the ranks and over the good steps since the last reading."""
        if not self.position.steps_unread:
            return
        mean = self.position.losses_sum / self.position.steps_unread
        average_(self.world, [mean])
        self.position.losses_sum.zero_()
        self.position.steps_unread = 0
        if self.tracker:
            norms = {f"{network}_gradient": engine.gradient_norm for network, engine in self.engines.items()}
            self.tracker.log_step(self.images_seen, StepLosses(*mean.tolist()), self._lr(), norms)

    def measure(self) -> None:
        """Score the averaged generator on the held-out photographs, and draw some of them.

        If the run is to stop meanwhile, it is left for when the run goes on.
        """
        self._enter("measuring")
        scores = self.evaluator.measure(self.engines, self.average, self._shall_stop)
        self.stopped_measuring = scores is None
        if self.tracker and scores:
            self.tracker.log_scores(self.images_seen, scores, self.evaluator.draw(self.run, self.images_seen))

    def save_if_due(self, agreed: Agreement) -> None:
        """Begin a checkpoint, or commit the one that all ranks have written by now."""
        epoch = self._finished_snapshot()
        if epoch or agreed.save or self._due(self.config.checkpoint.every_images):
            self.save(epoch)
        elif not agreed.writing:
            self.finish_saving()

    def stop_here(self) -> None:
        """Save what is not saved, and raise EarlyEndError."""
        self.finish_saving()
        if self.saver.saved_images != self.images_seen:
            self.save(self._finished_snapshot())
        self.finish_saving(must=True)
        # Ranks may have got different signals.
        requeue = bool(highest(self.world, [self.request.wants_requeue])[0])
        self._end_early(
            f"stopped by {PREEMPTION.name if requeue else self.request.signal or 'a signal'} after {self.images_seen} "
            f"images, which are saved in {self.run.path}; the same command goes on",
            STOPPED,
            requeue,
        )

    def save(self, snapshot_epoch: int | None = None) -> None:
        """Begin a checkpoint, after the one before is committed. A failure is told, and training goes on."""
        self.finish_saving()
        self._enter("saving")
        self.saved_s = time.monotonic()
        try:
            self.saver.start(self.training, snapshot_epoch)
        except OSError as error:
            self._alarm(error)

    def finish_saving(self, must: bool = False) -> None:
        """Commit the checkpoint that is being written, if any. must: raise UserError if it cannot be, or could not."""
        if self.saver.saving:
            self._enter("saving")
            try:
                saved = self.saver.finish()
            except OSError as error:
                self._alarm(error)
            else:
                if self.tracker:
                    self.tracker.log_checkpoint(self.images_seen, saved)
        if must and self.saver.saved_images != self.images_seen:
            raise UserError(
                f"run.folder={self.config.run.folder}: the checkpoint after {self.images_seen} images could not be "
                "written, see above; make room there, and the same command goes on from the one before"
            )

    def _agree(self) -> Agreement:
        self._enter("agreeing")
        save = self.world.is_main and time.monotonic() - self.saved_s >= self.config.checkpoint.every_s
        here = (self.request.requested, save, self.saver.is_writing)
        skipped = (self.engines.discriminator.skipped, self.engines.generator.skipped)
        return Agreement(*map(bool, highest(self.world, here, skipped)))

    def _shall_stop(self) -> bool:
        return bool(highest(self.world, [self.request.requested])[0])

    def _take_in(self, losses: torch.Tensor) -> None:
        position = self.position
        position.losses_sum += losses
        position.steps_unread += 1
        position.bad_in_a_row = 0
        if self.average:
            self.average.update(self.batch_size, self.images_seen)

    def _take_back(self, agreed: Agreement) -> None:
        """Leave a bad step out. Raises EarlyEndError if there were too many in a row."""
        for engine in self.engines:
            engine.roll_back_buffers()
        position, limit = self.position, self.config.train.max_bad_steps
        position.bad_steps += 1
        position.bad_in_a_row += 1
        if self.tracker:
            networks = "both networks" if agreed.discriminator_skipped else "the generator"
            self.tracker.say(
                f"  a loss or gradient is not finite at image {self.images_seen}: step skipped for {networks} "
                f"({position.bad_in_a_row} in a row, {position.bad_steps} in all)"
            )
        if position.bad_in_a_row >= limit:
            self.finish_saving()
            self._end_early(
                f"train.max_bad_steps={limit}: so many steps in a row had losses or gradients that are not finite; "
                f"the last checkpoint of {self.run.path} stays; a smaller train.lr, train.clip_norm or another "
                "train.precision may help, in a new run",
                DIVERGED,
            )

    def _owes_measurement(self) -> bool:
        """Whether the run was stopped before it could measure what it had trained."""
        if not self.images_seen or not self._due(self.config.tracking.samples_every_images):
            return False
        rows = read_metrics(self.run.metrics) if self.run.metrics.exists() else []
        return not any(row["kind"] == "held_out" and row["images_seen"] == self.images_seen for row in rows)

    def _end_early(self, message: str, exit_code: int, requeue: bool = False) -> NoReturn:
        def say() -> None:
            with suppress(BrokenPipeError):
                print(message, file=sys.stderr, flush=True)

        on_main(self.world, say)  # before any rank leaves: a launcher ends the others as soon as one has left
        raise EarlyEndError(message, exit_code, requeue)

    def _alarm(self, error: OSError) -> None:
        if self.tracker:
            self.tracker.say(f"  CHECKPOINT NOT WRITTEN: {error}; those before are kept, and training goes on")

    def _lr(self) -> float:
        train = self.config.train
        return learning_rate(train.lr, self.images_seen, self.images_total, train.lr_constant)

    def _due(self, every_images: int) -> bool:
        before = self.images_seen - self.batch_size
        return self.images_seen >= self.images_total or self.images_seen // every_images > before // every_images

    def _finished_snapshot(self) -> int | None:
        """The epoch of train.snapshots that this step has finished, if any."""
        per_epoch, before = len(self.photos.train), self.images_seen - self.batch_size
        finished = [e for e in self.config.train.snapshots if before < e * per_epoch <= self.images_seen]
        return max(finished, default=None)

    def _enter(self, phase: str) -> None:
        self.tell_phase(phase, self.images_seen // self.batch_size)

    def _open_tracker(self) -> None:
        per_epoch = len(self.photos.train)
        self.tracker = Tracker(self.run, self.config, self.world, self.images_seen, self.images_total, per_epoch)

    def _say(self, line: str) -> None:
        if self.world.is_main:
            print(line)


@contextmanager
def _telling_full_disks(run: RunFolder) -> Iterator[None]:
    """What rank 0 alone writes beside checkpoints, it cannot do without: RankError where there is no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise RankError(
            f"run.folder={run.path.parent}: cannot write {error.filename or run.path} ({error.strerror}); make room "
            "there, and the same command goes on from the last checkpoint"
        ) from None


def _collect_photos(config: Config, world: World, enter: Enter) -> SampleSets:
    enter("checking photographs", 0)
    with show_progress("checking photographs", shown=world.is_main) as progress:

        def proceed(done: int, total: int) -> None:
            enter("checking photographs", done)  # or a long check would pass for a hang
            progress(done, total)

        photos = collect(config, world, proceed)
    if photos.unreadable and world.is_main:
        print(f"left out {len(photos.unreadable)} photographs that cannot be read:", file=sys.stderr)
        for bad in photos.unreadable:
            print(f"  {bad.path}: {bad.reason}", file=sys.stderr)
    if config.train.batch_size > len(photos.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size} is larger than the data set of {len(photos.train)} "
            f"photographs to learn from: use {len(photos.train)} or less"
        )
    return photos
