"""Collects and checks the photographs of a run before it trains."""

from collections.abc import Callable

from hpc_recolor.config import Config
from hpc_recolor.data.sets import SampleSets, collect
from hpc_recolor.data.sources import print_left_out
from hpc_recolor.runtime.distributed import World
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress


def collect_photographs(config: Config, world: World, enter_phase: Callable[[str, int], None]) -> SampleSets:
    """The photographs of a config; unreadable ones are left out and listed on stderr. All ranks share the work.

    Raises UserError if there are too few for a batch, and as `collect` does. enter_phase: see EnterPhase.
    """
    enter_phase("checking photographs", 0)
    with show_progress("checking photographs", shown=world.is_main) as progress:

        def report(done: int, total: int) -> None:
            enter_phase("checking photographs", done)  # or a long check would pass for a hang
            progress(done, total)

        photos = collect(config, world, report)
    if world.is_main:
        print_left_out(photos.unreadable)
    if config.train.batch_size > len(photos.train):
        raise UserError(
            f"train.batch_size={config.train.batch_size}",
            f"larger than the data set of {len(photos.train)} photographs to learn from",
            f"use {len(photos.train)} or less",
        )
    return photos
