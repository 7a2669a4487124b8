"""Runs SLURM's own commands (20.11 and newer) and explains their errors."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.launcher_environment import foreign_names

# The subject of its errors.
SLURM = "SLURM"
# For output that is parsed. SLURM_BITSTR_LEN=0: else long lists of an array's tasks are truncated.
PARSABLE = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}
# How SLURM's commands write "no value".
NO_VALUE = ("", "N/A", "(null)", "UNLIMITED", "infinite", "NONE", "n/a", "None assigned", "Unknown", "None")
INVALID_JOB_ID = "Invalid job id"


class InvalidJobIdError(UserError):
    """SLURM does not know the job."""


@dataclass(frozen=True)
class Hint:
    """A message of SLURM, what it means where that is not obvious, and the suggested fix."""

    message: str
    cause: str
    fix: str


UNREACHABLE = ("slurmctld does not respond", "try again later, or ask the cluster's administrators")
# Where no hint fits.
OWN_MESSAGE_FIX = "see the manual page of the SLURM command, or ask the cluster's administrators"

HINTS = (
    Hint("Unable to contact slurm controller", *UNREACHABLE),
    Hint("Connection refused", *UNREACHABLE),
    Hint(
        "Could not establish a configuration source",
        "SLURM_CONF does not name a cluster",
        "log in to the cluster, or set SLURM_CONF",
    ),
    Hint(
        "Invalid account",
        "you may not use that --account or --qos",
        "choose one that `sacctmgr show assoc user=$USER` lists",
    ),
    Hint(
        "Invalid qos",
        "you may not use that --qos",
        "choose one that `sacctmgr show assoc user=$USER format=qos` lists",
    ),
    Hint("invalid partition", "", "choose a --partition that `sinfo` lists"),
    Hint(
        "Requested time limit is invalid",
        "--time is longer than the partition allows",
        "use a shorter --time; `sinfo` shows the limit",
    ),
    Hint(
        "Requested node configuration is not available",
        "no node has that many GPUs or CPUs, or that much memory",
        "ask for less; `sinfo` shows what nodes have",
    ),
    Hint(
        "Node count specification invalid",
        "the partition has fewer nodes than --nodes",
        "use fewer --nodes; `sinfo` shows how many there are",
    ),
    Hint(
        "Invalid feature",
        "no node has the feature of --constraint",
        "choose one that `sinfo -o '%P %f'` lists",
    ),
    Hint(INVALID_JOB_ID, "the job has ended or never existed", "check the job id"),
)


def run_command(command: Sequence[str], timeout_s: float = 30) -> str:
    """Output of a SLURM command, warnings included. Raises UserError if it is not installed, fails or times out."""
    foreign = foreign_names(os.environ)
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    try:
        done = subprocess.run(command, env=environment | PARSABLE, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise UserError(
            SLURM,
            f"not found on this machine ({command[0]} is not installed)",
            "log in to the cluster, use --cluster local, or try python -m hpc_recolor.dev_cluster up",
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(SLURM, f"{command[0]} did not respond within {timeout_s:.0f} s", "try again later") from None
    if done.returncode:
        raise slurm_error(done.stderr or done.stdout)
    return done.stdout + done.stderr


def slurm_error(text: str, context: str = "") -> UserError:
    """The error that a SLURM command has printed, on one line, with cause and fix where they are known.

    context: what failed, before the message itself. InvalidJobIdError if SLURM does not know the job.
    """
    lines = [re.sub(r"^(\w+): (error|fatal): ", "", line).strip() for line in text.splitlines()]
    message = "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"
    hint = next((hint for hint in HINTS if hint.message.lower() in message.lower()), Hint(message, "", OWN_MESSAGE_FIX))
    kind = InvalidJobIdError if hint.message == INVALID_JOB_ID else UserError
    return kind(SLURM, f"{context}{message}{f' ({hint.cause})' if hint.cause else ''}", hint.fix)


def parse_rows(text: str, fields: int) -> list[list[str]]:
    """The lines of `a|b|c` output with that many fields, of which the last may contain |.

    Warnings, which have fewer, are left out.
    """
    split = [line.split("|", fields - 1) for line in text.splitlines()]
    return [row for row in split if len(row) == fields]


def value_or_none(text: str) -> str | None:
    """A field of SLURM's output; None where it holds no value."""
    return None if text in NO_VALUE else text
