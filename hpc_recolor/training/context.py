"""What the parts of a training run share."""

from dataclasses import dataclass

from hpc_recolor.config import Config
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.run_state import RunState
from hpc_recolor.training.schedule import (
    RunLength,
    adversarial_scale,
    ends_first_epoch,
    finished_snapshot,
    is_due,
    learning_rate,
)
from hpc_recolor.training.time_ledger import TimeLedger
from hpc_recolor.training.tracking.tracker import RunTracker, Tracker
from hpc_recolor.training.watchdog.watchdog import EnterPhase


@dataclass(frozen=True)
class RunContext:
    """A run on this rank: its config and folder, its live state, and where it reports to."""

    config: Config
    world: World
    run: RunFolder
    length: RunLength
    state: RunState
    tracker: Tracker
    enter_phase: EnterPhase
    ledger: TimeLedger

    @classmethod
    def create(
        cls,
        config: Config,
        world: World,
        run: RunFolder,
        photographs: int,
        enter_phase: EnterPhase,
        ledger: TimeLedger,
    ) -> "RunContext":
        """A run before its first step, on this number of photographs. All ranks call it together."""

        def enter(phase: str, step: int) -> None:
            enter_phase(phase, step)
            ledger.enter_phase(phase)

        state, length = RunState.initial(config, world), RunLength.of(config, photographs)
        return cls(
            config=config,
            world=world,
            run=run,
            length=length,
            state=state,
            tracker=RunTracker(run, config, world, length) if world.is_main else Tracker(),
            enter_phase=enter,
            ledger=ledger,
        )

    @property
    def images_seen(self) -> int:
        """Images that both networks have learned from."""
        return self.state.counters.images_seen

    @property
    def step(self) -> int:
        """Steps that both networks have made."""
        return self.images_seen // self.length.per_step

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        train = self.config.train
        lr = learning_rate(train.lr, self.images_seen, self.length.total, train.lr_constant)
        return lr * adversarial_scale(self.config, self.images_seen)

    @property
    def finished_snapshot(self) -> int | None:
        """The epoch of train.snapshots that the last step finished, None if it finished none."""
        return finished_snapshot(self.config.train.snapshots, self.images_seen, self.length)

    @property
    def ends_first_epoch(self) -> bool:
        """Whether the last step ended the first epoch."""
        return ends_first_epoch(self.images_seen, self.length)

    def is_due(self, every_images: int) -> bool:
        """As `schedule.is_due`."""
        return is_due(every_images, self.images_seen, self.length)
