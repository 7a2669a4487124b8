"""Command lines to function calls with cyclopts, and errors to one line and an exit code."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from pydantic import ValidationError

from hpc_recolor.config import Config
from hpc_recolor.config_file import explain, load_config, to_yaml
from hpc_recolor.runtime.distributed import is_main_process
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, INTERRUPTED
from hpc_recolor.runtime.output import escaped, print_any_name

# If a rank exited before rank 0 has printed the error, the launcher would end rank 0 silently.
WAIT_FOR_MAIN_S = 20

# Every field of the config as a flag: --section.field VALUE, or --section.field=true for a switch.
ConfigFlags = Annotated[Config, Parameter(name="*")]
NO_FLAGS = Config()

# What `--vividness` may be, of `colorize` and `evaluate`.
VIVIDNESS = Number(gte=0, lte=10)

# Names of the commands that launchers start once a rank.
_distributed: set[str] = set()


def command(name: str, *, distributed: bool = False) -> App:
    """An app whose flags are spelled as the config's keys, in full.

    distributed: a launcher may start it on several ranks, and then rank 0 alone prints errors. All other commands
    ignore RANK, which may be left over in a shell.
    """
    if distributed:
        _distributed.add(name)
    spelling = Parameter(name_transform=lambda key: key, consume_multiple=True, negative_iterable=())
    return App(
        name=name,
        help_format="plaintext",
        version_flags=(),
        default_parameter=spelling,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # `exit_code` handles it
    )


def given(flags: Config) -> dict[str, Any]:
    """The values given on the command line, and no others, as a nested mapping."""
    return flags.model_dump(exclude_unset=True)


def load(file: Path | None, flags: Config) -> Config:
    """The config of a file, or the defaults, with the given flags over it. Raises UserError as `load_config` does."""
    return load_config(file, given(flags))


def print_config(config: Config) -> None:
    """Print a config as YAML that can be read back."""
    print(to_yaml(config), end="")


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: its own or 0, 2 for bad input (one line on stderr), 130 for Ctrl-C."""
    distributed = not _distributed.isdisjoint(app.name)

    def parse_and_run() -> Any:
        _check_working_directory()
        return app(argv, exit_on_error=False, print_error=False)

    return exit_code(parse_and_run, distributed=distributed)


def exit_code(action: Callable[[], Any], *, distributed: bool) -> int:
    """Run `action`, print what went wrong as one line, and return the exit code.

    distributed: whether RANK says which rank this is; then rank 0 prints for all.
    """
    prints = not distributed or is_main_process()
    _wait_for_threads_without_spinning()
    print_any_name()
    try:
        result = action()
    except CycloptsError as error:
        cause = error.__cause__
        return _fail(explain(cause, "command line") if isinstance(cause, ValidationError) else error, prints)
    except UserError as error:
        return _fail(error, prints or isinstance(error, RankError))
    except EarlyEndError as end:
        return end.exit_code  # the reason is already printed
    except KeyboardInterrupt:
        if prints:
            print("interrupted; committed work is kept, and the same command resumes from it", file=sys.stderr)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _wait_for_threads_without_spinning() -> None:
    """Before torch loads OpenMP. Its threads wait for each other in busy loops, which beside other load costs more than
    the work: a small U-Net on two cores with four busy processes trained 14 images/s, and 58 with so few turns of the
    loop (libgomp's default is 300,000); alone 246 and 234. Other OpenMP libraries know the policy only."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError:  # libraries abort on it
        raise UserError("working directory", "has been deleted", "cd to one that exists") from None


def _fail(error: Exception, prints: bool) -> int:
    if prints:
        print("error:", escaped(" ".join(str(error).split())), file=sys.stderr)
    else:
        time.sleep(WAIT_FOR_MAIN_S)  # the launcher ends this rank sooner, once rank 0 has exited
    return BAD_INPUT
