"""The training loop. The clock of everything in it is images seen."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from hpc_recolor.config import Config
from hpc_recolor.data.batch import Batch
from hpc_recolor.data.batches import training_batches
from hpc_recolor.data.order import SampleOrder
from hpc_recolor.data.pipeline import describe_loader
from hpc_recolor.data.sets import SampleSets
from hpc_recolor.run_folder.folder import RunFolder, claim
from hpc_recolor.run_folder.full_disk import full_disk_as_rank_error
from hpc_recolor.runtime.distributed import World, average_, is_main_process, on_main, start, stop
from hpc_recolor.runtime.errors import EarlyEndError, UserError
from hpc_recolor.runtime.exit_codes import DIVERGED, STOPPED
from hpc_recolor.runtime.progress import show_phase
from hpc_recolor.runtime.signals import PREEMPTION, StopRequest
from hpc_recolor.training import preflight
from hpc_recolor.training.agreement import LAG, Agreement, Flags, Verdict, Verdicts, agree_on_any
from hpc_recolor.training.bin_weights import set_bin_weights
from hpc_recolor.training.checkpointer import Checkpointer
from hpc_recolor.training.context import RunContext
from hpc_recolor.training.device_step import DeviceStep
from hpc_recolor.training.fit_memory import fit_memory, out_of_memory_as_rank_error
from hpc_recolor.training.idle_settings import idle_settings
from hpc_recolor.training.photo_check import collect_photographs
from hpc_recolor.training.resumed import check_resumed
from hpc_recolor.training.run_lock import locked
from hpc_recolor.training.run_state import restore
from hpc_recolor.training.schedule import backbone_scale, phase_at
from hpc_recolor.training.step import StepLosses
from hpc_recolor.training.step_runner import StepRunner, set_up_gpu
from hpc_recolor.training.time_ledger import TimeLedger
from hpc_recolor.training.validation import Validation
from hpc_recolor.training.watchdog.watchdog import EnterPhase, Watchdog

# A stop whose save took longer draws no samples [s]: torchrun and SLURM kill ranks 30 s after SIGTERM.
LONGEST_SAVE_WITH_SAMPLES_S = 10.0


def train(config: Config, request: StopRequest, age_s: float = 0.0) -> RunFolder:
    """Train the run of a config to its end, from its newest checkpoint if it has one. Returns its folder.

    Every rank calls it. Raises UserError, with nothing written, if config, photographs, ranks or checkpoint do not
    fit; EarlyEndError, with the state saved, if it is asked to stop, or if losses stay not finite. age_s: how long this
    process has been starting, for the account of its time.
    """
    preflight.check_compiler(config)
    ledger = TimeLedger(age_s)
    world = start(config.train.device, config.train.threads, lambda: _end_if_stopped(request))
    set_up_gpu(config, world)
    try:
        limits = config.train.hang_s, config.train.silence_s
        with Watchdog(world, *limits, before_exit=ledger.close) as watchdog:
            checked, run = on_main(world, lambda: preflight.check(config, world.size))
            # Not rank 0's: a node that has no room for a copy of them reads them elsewhere.
            own = checked.data.model_copy(update={"shards": config.data.shards})
            config = checked.model_copy(update={"data": own})
            photos = collect_photographs(config, world, watchdog.enter_phase)
            with locked(run, world), ledger:
                config = fit_memory(config, world, run, photos, watchdog.enter_phase)
                with out_of_memory_as_rank_error(config, world, run, lambda: watchdog.where):
                    with show_phase("preparing networks", shown=world.is_main):
                        trainer = Trainer(config, world, photos, run, request, watchdog.enter_phase, ledger)
                    trainer.run_loop()
    finally:
        stop()
    return run


def _end_if_stopped(request: StopRequest) -> None:
    """End this rank while it waits for others, if it received a signal."""
    if request.requested:
        message = f"stopped by {request.signal} before all ranks had come; the same command starts them again"
        if is_main_process():
            print(message, file=sys.stderr, flush=True)
        raise EarlyEndError(message, STOPPED, request.wants_requeue, alone=True)


class Trainer:
    """Trains a run on this rank. Creating one restores the newest checkpoint. All ranks use theirs together."""

    def __init__(
        self,
        config: Config,
        world: World,
        photos: SampleSets,
        run: RunFolder,
        request: StopRequest,
        enter_phase: EnterPhase = lambda phase, step: None,
        ledger: TimeLedger | None = None,
    ) -> None:
        self.config, self.world, self.photos, self.run = config, world, photos, run
        self.request = request
        self.context = RunContext.create(config, world, run, len(photos.train), enter_phase, ledger or TimeLedger())
        self.enter_phase = self.context.enter_phase
        self.state, self.length, self.tracker = self.context.state, self.context.length, self.context.tracker
        self.device_step = DeviceStep(
            config, world, self.state.engines, self.state.average, self.state.counters.losses_sum
        )
        self.runner = StepRunner(self.device_step, self._print)
        self.verdicts = Verdicts()
        self.checkpointer = Checkpointer(self.context, photos.fingerprint)
        self.validation = Validation(self.context, photos.held_out, self._stop_requested)
        self.enter_phase("restoring", self.context.step)
        found = restore(run, self.state, photos.has_fingerprint, world)
        if found:
            difference = on_main(world, lambda: check_resumed(found, config, world.device.type))
            self.checkpointer.saved_images = self.images_seen
            self._print(difference)
        elif self.state.engines.bins and config.loss.reconstruction == "bins":
            self.enter_phase("counting colors", self.context.step)
            set_bin_weights(self.state.engines.bins, config, photos.train, world)

    @property
    def images_seen(self) -> int:
        """Images that both networks have learned from."""
        return self.state.counters.images_seen

    def run_loop(self) -> None:
        """Train to the end of the run; log, measure and save whenever due, and at the end."""
        self._check_length()
        on_main(self.world, lambda: claim(self.run, self.config))
        owes_measurement = self.validation.is_owed()
        if self.images_seen == self.length.total and not owes_measurement:
            return self._print(f"{self.run.path} is finished; a larger train.epochs continues it")
        self._print_start()
        on_main(self.world, lambda: self.tracker.open(self.images_seen))  # if it fails, all ranks exit
        if self.world.is_main:
            self.context.ledger.open(self.run, self.images_seen)
        with full_disk_as_rank_error(self.run), self.tracker:  # which ends with the last figure
            if owes_measurement:
                self.validation.measure()
            self._train_to_the_end()

    def _train_to_the_end(self) -> None:
        self.enter_phase("loading photographs", self.context.step)
        batches = self._batches()
        if self._stop_requested():
            self._stop_here()
        while self.images_seen < self.length.total:
            self.enter_phase("loading photographs", self.context.step)
            agreed = self.run_step(next(batches))
            if agreed.asks_to_act or self._is_due():
                agreed = agreed.and_then(self._obey(lag=0))
            self._log_if_due()
            self.tracker.advance(self.images_seen)
            self.validation.run_if_due(by_time=agreed.validate)
            if agreed.stop or self.validation.interrupted:
                self._stop_here()
            self.checkpointer.save_if_due(interval_over=agreed.save, writing=agreed.writing)
        self.checkpointer.finish_last()

    def run_step(self, batch: Batch) -> Agreement:
        """Start a step of both networks on this rank's share of a batch. Returns what the ranks agreed on in the one
        before the last, for which it waits."""
        self.enter_phase("training", self.context.step)
        engines, train, average = self.state.engines, self.config.train, self.state.average
        engines.set_lr(self.context.lr, backbone_scale(train, self.context.images_seen))
        flags = Flags(
            stop=self.request.requested,
            save=self.checkpointer.is_interval_over,
            writing=self.checkpointer.is_writing,
            validate=self.validation.is_due_by_time(),
        )
        phase = phase_at(self.config.loss, self.images_seen)
        self.state.counters.images_seen += train.batch_size
        share = average.share(train.batch_size, self.images_seen) if average else 0.0
        self.device_step.set_inputs(flags, share)
        self.runner.run(batch.rgb_u8_NHWC, phase, batch.picks)
        self.verdicts.send(self.images_seen, self.device_step.verdict)
        return Agreement().and_then(self._obey())

    def _is_due(self) -> bool:
        """Whether something is due after this step that needs the verdicts of all steps before."""
        return self._is_logging_due() or self.validation.is_due() or self.checkpointer.is_due()

    def _batches(self) -> Iterator[Batch]:
        config, samples = self.config, self.photos.train
        order = SampleOrder(len(samples), config.run.seed)

        def report() -> None:
            self.enter_phase("loading photographs", self.context.step)  # or a long loading would pass for a hang

        return training_batches(
            samples, order, self.images_seen, config.train.batch_size, config.data, self.world, report
        )

    def _obey(self, lag: int = LAG) -> list[Verdict]:
        """Read the verdicts on all steps but the last `lag`, and count these steps.

        Raises EarlyEndError if too many in a row were not finite.
        """
        self.enter_phase("agreeing", self.context.step)
        received = self.verdicts.receive(lag)
        for images_seen, verdict in received:
            if verdict.discriminator_skipped or verdict.generator_skipped:
                self._count_bad_step(images_seen, verdict)
            else:
                self.state.counters.add_good_step()
        return [verdict for _, verdict in received]

    def _count_bad_step(self, images_seen: int, verdict: Verdict) -> None:
        counters, limit = self.state.counters, self.config.train.max_bad_steps
        counters.add_bad_step()
        networks = "both networks" if verdict.discriminator_skipped else "the generator"
        self.tracker.print_line(
            f"  a loss or gradient is not finite at image {images_seen}: step skipped for {networks} "
            f"({counters.bad_in_a_row} in a row, {counters.bad_steps} in all)"
        )
        if counters.bad_in_a_row >= limit:
            self.checkpointer.finish()
            self._end_early(
                f"train.max_bad_steps={limit}: {limit} steps in a row had losses or gradients that are not finite; the "
                f"last checkpoint of {self.run.path} is kept; a smaller train.lr, train.clip_norm or another "
                "train.precision may help, in a new run",
                DIVERGED,
            )

    def _is_logging_due(self) -> bool:
        return self.context.is_due(self.config.tracking.log_every_steps * self.length.per_step)

    def _log_if_due(self) -> None:
        """Log the losses as means over ranks and over the good steps since they were last logged."""
        if not self._is_logging_due() or not self.state.counters.unlogged_steps:
            return
        mean = self.state.counters.take_mean_losses()
        average_(self.world, [mean])
        norms = {f"{network}_gradient": engine.gradient_norm for network, engine in self.state.engines.items()}
        self.tracker.log_step(self.images_seen, StepLosses(*mean.tolist())._asdict(), self.context.lr, norms)

    def _stop_requested(self) -> bool:
        """Whether any rank is asked to stop. All ranks call it together."""
        return agree_on_any(self.world, self.request.requested)

    def _stop_here(self) -> NoReturn:
        started_s = time.monotonic()
        self.checkpointer.save_now()
        # Ranks may have received different signals.
        requeue = agree_on_any(self.world, self.request.wants_requeue)
        if self.world.is_main and time.monotonic() - started_s < LONGEST_SAVE_WITH_SAMPLES_S:
            with suppress(Exception):  # a figure that fails leaves a stop a stop
                self.validation.draw_saved()
        self._end_early(
            f"stopped by {PREEMPTION.name if requeue else self.request.signal or 'a signal'} after {self.images_seen} "
            f"images, which are saved in {self.run.path}; the same command continues from there",
            STOPPED,
            requeue,
        )

    def _end_early(self, message: str, exit_code: int, requeue: bool = False) -> NoReturn:
        def print_message() -> None:
            with suppress(BrokenPipeError):
                print(message, file=sys.stderr, flush=True)

        on_main(self.world, print_message)  # before any rank exits: a launcher then ends the others
        raise EarlyEndError(message, exit_code, requeue)

    def _check_length(self) -> None:
        if self.images_seen > self.length.total:
            raise UserError(
                f"train.epochs={self.config.train.epochs}",
                f"{self.run.path} has already seen {self.images_seen} images, more than the "
                f"{self.length.total} of these epochs",
                "use more epochs or a new run.name",
            )

    def _print_start(self) -> None:
        world, photos = self.world, self.photos
        self._print(
            f"training {self.run.path} on {world.size} x {world.device.type}: {len(photos.train)} photographs, "
            f"{len(photos.held_out)} held out, from image {self.images_seen} to {self.length.total}"
        )
        self._print(f"loader: {describe_loader(self.config.data)}")
        if (accumulate := self.config.train.accumulate) > 1:
            together = self.config.train.batch_size // world.size // accumulate
            self._print(f"train.accumulate={accumulate}: each rank computes {together} images at a time")
        for line in idle_settings(self.config, self.world.device.type == "cuda"):
            self._print(line)
        if cost := self.state.engines.cost_of_stage:
            self._print(cost)

    def _print(self, line: str) -> None:
        if line and self.world.is_main:
            print(line)
