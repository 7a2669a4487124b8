"""README.md in a run folder: what the run is, how far it came, and how to go on with it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.code_version import PACKAGE_VERSION
from hpc_recolor.runtime.output import escaped, shell_command

# Files without it are the user's own, and stay.
MARK = "<!-- Written by hpc_recolor at the start and the end of each training. Without this line it is left alone. -->"

TEMPLATE = """\
# {name}

{what}
{state}

    {cd}
    {train}   # resume; after the end, a larger --train.epochs continues
    {evaluate}   # measure it on test photographs
    {report}   # one page, of several runs too
    {colorize}   # color photographs

If this folder was moved, name its new place in these commands, and to train give {moved} too.

{mark}
"""


def write_readme(run: RunFolder, config: Config, photographs: int, state: str) -> None:
    """Write RUN/README.md. state: what the run is doing, as a phrase: "training from image 0 of 960".

    Does nothing where the user has put a README of another kind, or the disk refuses the file: a run does not fail
    because of it.
    """
    with suppress(OSError):
        file = run.path / "README.md"
        if not file.exists() or MARK in file.read_text(errors="replace"):
            write_atomically(file, _text(run, config, photographs, state).encode(errors="replace"))


def _text(run: RunFolder, config: Config, photographs: int, state: str) -> str:
    module = ("python", "-m")
    moved = {"--run.folder": "...", "--run.name": run.path.name}
    return TEMPLATE.format(
        name=escaped(run.path.name),
        what=f"A colorizer in training, by hpc_recolor {PACKAGE_VERSION}: {_networks(config)}, "
        f"on {photographs:,} photographs of {escaped(str(config.data.shards or config.data.photos))}.",
        state=f"{state[:1].upper()}{state[1:]}, as of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        cd=shell_command("cd", Path.cwd()),
        train=shell_command(*module, "hpc_recolor.train", "--config", run.config),
        evaluate=shell_command(*module, "hpc_recolor.evaluate", run.path),
        report=shell_command(*module, "hpc_recolor.report", run.path),
        colorize=shell_command(*module, "hpc_recolor.colorize", "PHOTO", "--run", run.path, "--out", "colored"),
        moved=" ".join(shell_command(*pair) for pair in moved.items()),
        mark=MARK,
    )


def _networks(config: Config) -> str:
    model, adversarial = config.model, config.loss.adversarial
    against = "without an adversary" if adversarial == "none" else f"with an adversary ({adversarial})"
    return f"{model.generator}, {model.color}, {config.data.size} px, {against}"
