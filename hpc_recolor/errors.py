"""How a command ends before its end: an error that is the user's to mend, or work that is kept for another time."""


class UserError(Exception):
    """Bad input: one line that says key, value, reason and fix. Commands print it and exit with code 2."""


class RankError(UserError):
    """What one rank alone may meet, so that this rank says it. Others are met by all ranks, and rank 0 says them."""


class EarlyEndError(Exception):
    """A run that ends before its last step, with its last checkpoint kept: what happened, the exit code, and whether
    the scheduler has only asked for room, so that the run should be queued again. All ranks raise it together, after
    rank 0 has said it."""

    def __init__(self, message: str, exit_code: int, requeue: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.requeue = requeue
