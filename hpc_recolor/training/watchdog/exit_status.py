"""How a rank's main thread ended: as planned, by an error of its own, or because it lost another rank."""

import re
import traceback
from dataclasses import dataclass

from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.training.watchdog.heartbeat import RankState

LONGEST_ERROR = 500

# Errors of a collective in a rank whose peer is gone, and of distributed.on_main where rank 0 has failed.
CONSEQUENCE = re.compile(
    r"closed by peer|connection reset|connection refused|broken pipe|connection was likely closed|timed out|gloo|nccl"
    r"|^rank 0 failed",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ExitStatus:
    """How the main thread of a rank ended.

    error: type and message, on one line. traceback: text of an error of its own, which ends the process.
    reports_itself: whether the rank's command prints the error, so that nobody else has to.
    """

    state: RankState
    error: str = ""
    traceback: str = ""
    reports_itself: bool = False


def exit_status_of(error: BaseException | None) -> ExitStatus:
    """The exit status of a rank whose work ended with `error`, or without one."""
    if isinstance(error, RankError):
        return ExitStatus(RankState.DISCONNECTED, error=str(error), reports_itself=True)
    if error is None or isinstance(error, (UserError, EarlyEndError, KeyboardInterrupt, SystemExit, GeneratorExit)):
        return ExitStatus(RankState.LEFT, error=_summarize(error) if error else "")
    if isinstance(error, RuntimeError) and CONSEQUENCE.search(str(error)):
        return ExitStatus(RankState.DISCONNECTED, error=_summarize(error))
    trace = "".join(traceback.format_exception(error))
    return ExitStatus(RankState.RUNNING, error=_summarize(error), traceback=trace)


def _summarize(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
