"""The lock of a run folder, held by rank 0 for all ranks and refreshed during training."""

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
    """Hold the lock of a run folder. Raises UserError on all ranks if another job has it."""
    with without_empty_folders(run.path) if world.is_main else nullcontext():
        lock, released = RunLock(run), Event()

        def take() -> None:
            make_folder(run)
            lock.__enter__()

        on_main(world, take)
        refresher = Thread(target=_refresh_until, args=(lock, released), daemon=True)
        if world.is_main:
            refresher.start()
        try:
            yield
        finally:
            released.set()
            if world.is_main:
                refresher.join()
                lock.__exit__()


def _refresh_until(lock: RunLock, released: Event) -> None:
    while not released.wait(REFRESH_S):
        if not lock.refresh():
            os.write(2, f"error: {lock.path} was taken over by another job; this one exits without saving\n".encode())
            os._exit(FAILED)
