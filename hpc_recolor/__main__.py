"""`hpc-recolor COMMAND`: the same as `python -m hpc_recolor.COMMAND`."""

import sys
from importlib import import_module

from hpc_recolor import cli
from hpc_recolor.runtime.exit_codes import BAD_INPUT

COMMANDS = {
    "prepare": "photographs to shards, once",
    "doctor": "check a data set and this machine",
    "train": "train a colorizer on a folder of photographs",
    "submit": "train as a SLURM job, or several as an array",
    "jobs": "follow, stop and restart submitted runs",
    "checkpoint": "list, verify and export a run's checkpoints",
    "colorize": "color photographs with a trained run",
    "evaluate": "measure a run on test photographs",
    "report": "compare runs on one page",
    "study": "train, measure and compare all runs of a folder of configs",
}


def main() -> int:
    """Run the command named by the first argument with the others. Returns its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return cli.run(import_module(f"hpc_recolor.{name}").app, rest)
    listing = "\n".join(f"  {command:<12}{meaning}" for command, meaning in COMMANDS.items())
    if name in ("-h", "--help"):
        print(f"Usage: hpc-recolor COMMAND [--help] ...\n\n{listing}")
        return 0
    print(f"error: unknown command {name}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
