"""How a rank ends its work: as it should, by a failure of its own, or because it has lost another rank."""

import re
import traceback
from dataclasses import dataclass

from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.training.watchdog.heartbeat import State

LONGEST_ERROR = 500

# What a collective says in a rank whose peer is gone, and what distributed.on_main says where rank 0 has failed.
CONSEQUENCE = re.compile(
    r"closed by peer|connection reset|connection refused|broken pipe|connection was likely closed|timed out|gloo|nccl"
    r"|^rank 0 failed",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Farewell:
    """How the main thread has come to the end of its work."""

    state: State
    said: str = ""
    trace: str = ""
    quiet: bool = False  # the rank says it itself


def farewell_of(error: BaseException | None) -> Farewell:
    """How a rank parts that ends with `error`, or with none."""
    if isinstance(error, RankError):
        return Farewell(State.CUT_OFF, str(error), quiet=True)
    if error is None or isinstance(error, (UserError, EarlyEndError, KeyboardInterrupt, SystemExit, GeneratorExit)):
        return Farewell(State.LEFT, _summary(error) if error else "")
    if isinstance(error, RuntimeError) and CONSEQUENCE.search(str(error)):
        return Farewell(State.CUT_OFF, _summary(error))
    return Farewell(State.RUNNING, _summary(error), trace="".join(traceback.format_exception(error)))


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
