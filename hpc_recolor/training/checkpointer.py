"""When checkpoints are saved, and what happens if one cannot be written."""

import time

from hpc_recolor.runtime.errors import UserError
from hpc_recolor.training.background_writer import BackgroundWriter
from hpc_recolor.training.context import RunContext


class Checkpointer:
    """Saves a run's state whenever a checkpoint is due. All ranks call it together.

    saved_images: images seen at the newest committed checkpoint. A checkpoint that cannot be written is reported, and
    training continues.
    """

    def __init__(self, context: RunContext, photos: str) -> None:
        self.context = context
        self.writer = BackgroundWriter(context.run, context.config, photos, context.world)
        self.saved_images = 0
        self.started_s = time.monotonic()

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its part of a checkpoint."""
        return self.writer.is_writing

    @property
    def is_interval_over(self) -> bool:
        """Whether checkpoint.every_s have passed since the last checkpoint was started, by the clock of rank 0."""
        return (
            self.context.world.is_main and time.monotonic() - self.started_s >= self.context.config.checkpoint.every_s
        )

    def is_due(self) -> bool:
        """Whether the last step makes a checkpoint due, whatever the time."""
        every_images = self.context.config.checkpoint.every_images
        return bool(self.context.finished_snapshot) or self.context.is_due(every_images)

    def save_if_due(self, interval_over: bool, writing: bool) -> None:
        """Start a checkpoint, or commit the one that all ranks have written by now.

        Both must be the same on all ranks. interval_over: `is_interval_over` of rank 0. writing: whether any rank is
        still writing.
        """
        if interval_over or self.is_due():
            self._start()
        elif not writing:
            self.finish()

    def save_now(self) -> None:
        """Save the present state unless it is saved. Raises UserError if that cannot be done."""
        self.finish()
        if self.saved_images != self.context.images_seen:
            self._start()
        self.finish_last()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, and commit it."""
        if not self.writer.pending:
            return
        self.context.enter_phase("saving", self.context.step)
        try:
            saved = self.writer.finish()
        except OSError as error:
            self._warn(error)
            return
        self.saved_images = saved.images_seen
        self.context.ledger.commit_checkpoint(saved.images_seen)
        self.context.tracker.log_checkpoint(self.context.images_seen, saved)

    def finish_last(self) -> None:
        """As `finish`; waits until old checkpoints are removed. Raises UserError if the present state is not saved."""
        self.finish()
        if warning := self.writer.finish_removal():
            self.context.tracker.print_line(f"  {warning}")
        if self.saved_images != self.context.images_seen:
            raise UserError(
                f"run.folder={self.context.config.run.folder}",
                f"the checkpoint after {self.context.images_seen} images could not be written, see above",
                "make room there; the same command continues from the checkpoint before",
            )

    def _start(self) -> None:
        self.finish()
        self.context.enter_phase("saving", self.context.step)
        self.started_s = time.monotonic()
        self.context.ledger.start_checkpoint(self.context.images_seen)
        try:
            self.writer.start(self.context.state, self.context.finished_snapshot)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        self.context.tracker.print_line(
            f"  CHECKPOINT NOT WRITTEN: {error}; earlier checkpoints are kept, and training continues"
        )
