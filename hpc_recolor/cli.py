"""Command lines to function calls with cyclopts, and errors to one line and exit code 2."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from hpc_recolor.config import Config
from hpc_recolor.config_file import explain
from hpc_recolor.runtime.distributed import is_main_process
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, INTERRUPTED

# A rank that left before rank 0 has spoken would have the launcher end rank 0 unheard.
WAIT_FOR_MAIN_S = 20

# Every field of the config as a flag: --section.field VALUE, or --section.field=true for a switch.
ConfigFlags = Annotated[Config, Parameter(name="*")]


def command(name: str) -> App:
    """An app whose flags are spelled as the config's keys, in full."""
    spelling = Parameter(name_transform=lambda key: key, consume_multiple=True, negative_iterable=())
    return App(
        name=name,
        help_format="plaintext",
        version_flags=(),
        default_parameter=spelling,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # `run` says what it means
    )


def given(flags: Config) -> dict[str, Any]:
    """Only what was said on the command line, as a nested mapping."""
    return flags.model_dump(exclude_unset=True)


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: its own or 0, 2 for bad input (one line on stderr), 130 for Ctrl-C."""
    return exit_code(lambda: app(argv, exit_on_error=False, print_error=False))


def exit_code(action: Callable[[], Any]) -> int:
    """Do what a command does, say in one line what went wrong, and return the exit code."""
    try:
        result = action()
    except CycloptsError as error:
        cause = error.__cause__
        return _fail(str(explain(cause, "command line") if isinstance(cause, ValidationError) else error))
    except UserError as error:
        return _fail(str(error), by_all=isinstance(error, RankError))
    except EarlyEndError as end:
        return end.exit_code  # it has been said
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted; what was committed stays, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _fail(message: str, by_all: bool = False) -> int:
    if by_all or is_main_process():
        print("error:", " ".join(message.split()), file=sys.stderr)
    else:
        time.sleep(WAIT_FOR_MAIN_S)  # the launcher ends it sooner, once rank 0 has left
    return BAD_INPUT
