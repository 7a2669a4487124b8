"""The lock of a run folder, held by rank 0 for all ranks, and kept fresh beside training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread

from hpc_recolor.run_folder.files import without_empty_folders
from hpc_recolor.run_folder.folder import RunFolder, make_folder
from hpc_recolor.run_folder.lock import RunLock
from hpc_recolor.runtime.distributed import World, on_main
from hpc_recolor.runtime.exit_codes import FAILED

REFRESH_S = 10.0


@contextmanager
def locked(run: RunFolder, world: World) -> Iterator[None]:
    """No other job has this run meanwhile. Raises UserError on all ranks if one does."""
    with without_empty_folders(run.path) if world.is_main else nullcontext():
        lock, over = RunLock(run), Event()

        def take() -> None:
            make_folder(run)
            lock.__enter__()

        on_main(world, take)
        keeper = Thread(target=_keep_fresh, args=(lock, over), daemon=True)
        if world.is_main:
            keeper.start()
        try:
            yield
        finally:
            over.set()
            if world.is_main:
                keeper.join()
                lock.__exit__()


def _keep_fresh(lock: RunLock, over: Event) -> None:
    while not over.wait(REFRESH_S):
        if not lock.refresh():
            os.write(2, f"error: {lock.path} is another job's by now; this one ends without saving\n".encode())
            os._exit(FAILED)
