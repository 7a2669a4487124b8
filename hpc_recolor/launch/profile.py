"""What a cluster asks for and offers (a YAML file in slurm/profiles/), and what one submission asks of it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from hpc_recolor.config import Section
from hpc_recolor.config_file import explain, read_yaml
from hpc_recolor.runtime.errors import UserError


def _one_line(text: str) -> str:
    """A line break would end an #SBATCH line, and what follows it would be run."""
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _legal_path(text: str) -> str:
    if "%" in text or "\\" in text:
        raise ValueError("SLURM would read its % or \\ as a pattern: choose another place")
    return _one_line(text)


def _shell_line(text: str) -> str:
    if text.rstrip().endswith("\\"):
        raise ValueError("a backslash at the end would swallow the next line")
    return _one_line(text)


# SLURM's own names: nothing that a shell would read, nor a % that SLURM would.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@+=-]+$")]
Line = Annotated[str, AfterValidator(_one_line)]
ShellLine = Annotated[str, AfterValidator(_shell_line)]
PlainPath = Annotated[str, AfterValidator(_legal_path)]
Constraint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@+=*&|,()\[\]-]+$")]
Mount = Annotated[str, Field(pattern=r"^/[^\s,:'\"$`;]*(:/[^\s,:'\"$`;]*)?$")]


class Container(Section):
    """An image that ranks run in; it has the packages, the code comes from the run's snapshot."""

    runtime: Literal["pyxis", "apptainer"] = Field(description="pyxis: SLURM starts it; apptainer: we do.")
    image: Line = Field(min_length=1, description="An .sqsh or .sif file, or an address that the runtime understands.")
    mounts: tuple[Mount, ...] = Field((), description="Folders, as HOST or HOST:CONTAINER, beside the run folders.")
    python: PlainPath = Field("python3", description="Python inside the image.")


class Profile(Section):
    """A cluster. What is not said is left to SLURM's own defaults."""

    partition: Word | None = Field(None, description="Partition; SLURM's default one without it.")
    account: Word | None = Field(None, description="Account that pays; the user's default one without it.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Constraint | None = Field(None, description="Features that nodes must have, as a100&nvlink.")
    time: Line | None = Field(
        None, description="Longest time before the job is stopped, and queued again: MINUTES, H:M:S or D-H:M:S."
    )
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs, and so ranks, of a node [0: one rank on CPUs].")
    cpus_per_node: int | None = Field(None, ge=1, description="CPUs of a node that its ranks share.")
    memory_gb: float | None = Field(None, gt=0, description="Memory of a node [GB].")
    signal_s: int = Field(
        120, ge=10, le=3600, description="How long before the end the ranks are told to save [s, 10 to 3600]."
    )
    max_requeues: int | None = Field(
        None, ge=0, description="How often a job may be queued again; without end if empty."
    )
    modules: tuple[Line, ...] = Field((), description="Environment modules to load on the nodes.")
    setup: tuple[ShellLine, ...] = Field((), description="Shell lines to run on the first node before the ranks start.")
    python: PlainPath | None = Field(None, description="Python on the nodes; the one that submits without it.")
    container: Container | None = Field(None, description="Image to run in.")
    scratch: Line | None = Field(
        None,
        description="Folder on each node's own disk, as $TMPDIR: data.shards are copied there once, build caches kept.",
    )
    network_interface: Word | None = Field(None, description="Network between the nodes, for NCCL and gloo, as ib0.")


class Options(Profile):
    """One submission: the profile, with what the command line and the cluster said laid over it."""

    cluster: Literal["slurm", "local"] = "slurm"
    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1)
    chdir: Line | None = None
    time_min: int | None = None
    after: Annotated[str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")] | None = None
    at_once: int = Field(4, ge=1)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def load_profile(file: Path) -> Profile:
    """A profile file. Raises UserError if it cannot be read, or holds an unknown key or an illegal value."""
    try:
        said = {key: value for key, value in read_yaml(file).items() if value != {}}  # a key without a value
        return Profile.model_validate(said)
    except ValidationError as error:
        raise UserError(explain(error, str(file), list(Profile.model_fields), reference="slurm/README.md")) from None


def plain_path(path: Path, key: str) -> Path:
    """The absolute path, if SLURM and PYTHONPATH take it as it is. Raises UserError otherwise."""
    absolute = path.absolute()
    if not re.fullmatch(r"[^%\\:\x00-\x1f\x7f]+", str(absolute)):
        raise UserError(
            f"{key}={str(absolute)!r}: SLURM would read its %, \\, : or line break in its own way; rename it"
        )
    return absolute


def working_directory() -> str:
    """Where this command was typed, and its paths begin. Raises UserError if SLURM would not take it as it is."""
    place = str(Path.cwd())
    if not place.isprintable():
        raise UserError(f"the working directory {place!r} is not one line of printable characters; rename it")
    return place
