"""Exceptions that end a command."""


class UserError(Exception):
    """Bad input. Commands print it as one line on stderr and exit with code 2 (`exit_codes.BAD_INPUT`).

    subject: what is wrong, with its value, such as `train.batch_size=60`. problem: why it is refused. fix: what to do
    instead. Picklable, since rank 0 sends it to all ranks.
    """

    def __init__(self, subject: str, problem: str, fix: str) -> None:
        super().__init__(subject, problem, fix)
        self.subject, self.problem, self.fix = subject, problem, fix

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; {self.fix}"


class RankError(UserError):
    """A UserError that may occur on one rank alone, which prints it. Rank 0 prints all others."""


def cannot_write(subject: str, error: OSError, fix: str) -> UserError:
    """The file system refused a write. error: must name its file."""
    return UserError(subject, f"cannot write {error.filename} ({error.strerror})", fix)


def cannot_read(subject: str, error: OSError, fix: str) -> UserError:
    """The file system refused to read the subject."""
    return UserError(subject, f"cannot be read ({error.strerror})", fix)


class EarlyEndError(Exception):
    """A run that ends before its last step, with its last checkpoint kept.

    message: already printed by rank 0. requeue: whether the scheduler only preempted it, so that the job should be
    queued again. All ranks raise it together; alone: where this one raises it alone, and others may wait for it.
    """

    def __init__(self, message: str, exit_code: int, requeue: bool = False, alone: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.requeue = requeue
        self.alone = alone
