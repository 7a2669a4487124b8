"""A full or read-only disk as an error for the user."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.errors import RankError


@contextmanager
def full_disk_as_rank_error(run: RunFolder) -> Iterator[None]:
    """Raises RankError instead of the OSError of a full or read-only disk; other errors pass.

    For what rank 0 alone writes into a run folder, and a run cannot do without.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise RankError(
            f"run.folder={run.path.parent}",
            f"cannot write {error.filename or run.path} ({error.strerror})",
            "make room there; the same command continues from the last checkpoint",
        ) from None
