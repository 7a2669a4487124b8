"""Command lines to function calls with cyclopts, and errors to one line and an exit code."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number
from pydantic import ValidationError, create_model, model_validator

from hpc_recolor.config import Config
from hpc_recolor.config_file import explain, load_config, read_nulls, to_yaml
from hpc_recolor.runtime.code_version import PACKAGE_VERSION
from hpc_recolor.runtime.distributed import is_main_process
from hpc_recolor.runtime.errors import EarlyEndError, RankError, UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT, INTERRUPTED
from hpc_recolor.runtime.output import escaped, print_any_name
from hpc_recolor.runtime.process import wait_without_spinning

# If a rank exited before rank 0 has printed the error, the launcher would end rank 0 silently.
WAIT_FOR_MAIN_S = 20

# The program, and the modules that are its commands, in the order of their use, with what `--help` says of each.
PROGRAM = "hpc-recolor"
COMMANDS = {
    "demo": "See the whole tool at work, on photographs inside pip packages.",
    "prepare": "Photographs to shards, once.",
    "doctor": "Check a data set and this machine.",
    "train": "Train a colorizer on a folder of photographs.",
    "submit": "Train as a SLURM job, or several as an array.",
    "jobs": "Follow, stop and restart submitted runs.",
    "checkpoint": "List, verify and export a run's checkpoints.",
    "colorize": "Color photographs.",
    "serve": "A page to color photographs on, and an API.",
    "evaluate": "Measure a run on test photographs.",
    "report": "Compare runs on one page.",
    "study": "Train, measure and compare all runs of a folder of configs.",
    "dev_cluster": "A real SLURM cluster of four nodes on this machine.",
}

# Every field of the config as a flag: --section.field VALUE, or --section.field=true for a switch.
if TYPE_CHECKING:
    ConfigFlags = Annotated[Config, Parameter(name="*")]
else:  # with each section as a box of `--help`
    ConfigFlags = Annotated[
        create_model(
            "ConfigFlags",
            __base__=Config,
            __validators__={"read_nulls": model_validator(mode="before")(read_nulls)},
            **{
                name: (
                    Annotated[type(section), Parameter(group=Group.create_ordered(name, help=section.__doc__))],
                    section,
                )
                for name, section in Config()
            },
        ),
        Parameter(name="*"),
    ]
NO_FLAGS = Config()

CONFIG_HELP = "YAML file with the same keys, or the name of a config in this package, as quickstart; flags win over it."

# What `colorize` and `serve` color with.
RUN_OR_FILE = Parameter(
    help="Run folder, of which the newest checkpoint is used, or a file that `checkpoint export` wrote; by default the "
    "colorizer that comes with this package.",
    show_default=False,
)

# What `--vividness` may be, of `colorize` and `evaluate`.
VIVIDNESS = Number(gte=0, lte=10)

# Names of the commands that launchers start once a rank.
_distributed: set[str] = set()
_OPTIONS = Group.create_ordered("Options")


def program() -> App:
    """The app of all commands, each imported when it is named, and by no `--help` or `--version` of the program."""
    app = App(
        name=PROGRAM,
        help="Train colorizers of gray photographs, from one laptop to a SLURM cluster.",
        help_format="plaintext",
        version=PACKAGE_VERSION,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # `exit_code` handles it
    )
    for number, (name, meaning) in enumerate(COMMANDS.items()):
        app.command(f"hpc_recolor.{name}:app", name=name, help=meaning, sort_key=number)
    app.register_install_completion_command(help="Let the shell complete commands and flags.", version_flags=())
    for flag in (*app.help_flags, *app.version_flags, "--install-completion"):
        app[flag].group = (_OPTIONS,)
    return app


def command(name: str, *, distributed: bool = False) -> App:
    """An app whose flags are spelled as the config's keys, in full. name: in COMMANDS, or of a program of its own.

    distributed: a launcher may start it on several ranks, and then rank 0 alone prints errors. All other commands
    ignore RANK, which may be left over in a shell.
    """
    if distributed:
        _distributed.add(name)
    spelling = Parameter(name_transform=lambda key: key, consume_multiple=True, negative_iterable=())
    app = App(
        name=name,
        help_format="plaintext",
        version_flags=(),
        default_parameter=spelling,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for flag in app.help_flags:
        app[flag].show = False  # it would be the only one in a box of commands
    return app


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    if app.name[0] == PROGRAM and arguments and arguments[0] in COMMANDS:
        app = import_module(f"hpc_recolor.{arguments.pop(0)}").app
    whole = _program_with(app) if app.name[0] in COMMANDS else app

    def parse_and_run() -> Any:
        _check_working_directory()
        named = [] if whole is app else [app.name[0]]
        return whole([*named, *arguments], exit_on_error=False, print_error=False)

    return exit_code(parse_and_run, distributed=not _distributed.isdisjoint(app.name))


def _program_with(command: App) -> App:
    """The program, for its name in usages and errors, with a command that is already imported, maybe as `__main__`."""
    app, name = program(), command.name[0]
    command.help = command.help or COMMANDS[name]
    del app[name]
    app.command(command)
    return app


def exit_code(action: Callable[[], Any], *, distributed: bool) -> int:
    """Run `action`, print what went wrong as one line, and return the exit code.

    distributed: whether RANK says which rank this is; then rank 0 prints for all.
    """
    prints = not distributed or is_main_process()
    wait_without_spinning()
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
