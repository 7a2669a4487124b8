"""Settings of a cluster (a YAML file, as in slurm/profiles/), and the options of one submission to it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from hpc_recolor.config import Section
from hpc_recolor.config_file import explain, read_yaml
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.packaged import PROFILES, find_yaml


def _one_line(text: str) -> str:
    """A line break would end an #SBATCH line, and the text after it would be executed."""
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _plain_path_text(text: str) -> str:
    if "%" in text or "\\" in text:
        raise ValueError("must not contain % or \\, which SLURM would expand")
    return _one_line(text)


def _quoted(value: object) -> object:
    """YAML reads 30:00 as a number of the base 60."""
    if not isinstance(value, str):
        raise ValueError('must be in quotes, such as "30:00"')
    return value


def _shell_line(text: str) -> str:
    if text.rstrip().endswith("\\"):
        raise ValueError("must not end with a backslash, which would join it with the next line")
    return _one_line(text)


# Names in SLURM: without characters that a shell would interpret, and without %, which SLURM would expand.
SlurmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@+=-]+$")]
TextLine = Annotated[str, AfterValidator(_one_line)]
Duration = Annotated[str, BeforeValidator(_quoted), AfterValidator(_one_line)]
ShellLine = Annotated[str, AfterValidator(_shell_line)]
PlainPath = Annotated[str, AfterValidator(_plain_path_text)]
Constraint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@+=*&|,()\[\]-]+$")]
Mount = Annotated[str, Field(pattern=r"^/[^\s,:'\"$`;]*(:/[^\s,:'\"$`;]*)?$")]


class Container(Section):
    """A container image for the ranks. It provides the Python packages; the code comes from the run's snapshot."""

    runtime: Literal["pyxis", "apptainer"] = Field(
        description="pyxis: started by SLURM; apptainer: started by the job script."
    )
    image: TextLine = Field(min_length=1, description="An .sqsh or .sif file, or an address that the runtime accepts.")
    mounts: tuple[Mount, ...] = Field(
        (), description="Folders, as HOST or HOST:CONTAINER, in addition to the run folders."
    )
    python: PlainPath = Field("python3", description="Python inside the image.")


class Profile(Section):
    """A cluster. Keys that are not set are left to SLURM's defaults."""

    partition: SlurmName | None = Field(None, description="Partition [default: SLURM's default one].")
    account: SlurmName | None = Field(None, description="Account to charge [default: the user's default one].")
    qos: SlurmName | None = Field(None, description="Quality of service.")
    constraint: Constraint | None = Field(None, description="Features that nodes must have, such as a100&nvlink.")
    time: Duration | None = Field(
        None, description="Time limit, after which the job is requeued: MINUTES, H:M:S or D-H:M:S."
    )
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs, and so ranks, of a node [0: one rank on CPUs].")
    cpus_per_node: int | None = Field(None, ge=1, description="CPUs of a node that its ranks share.")
    memory_gb: float | None = Field(None, gt=0, description="Memory of a node [GB].")
    signal_s: int = Field(
        120, ge=10, le=3600, description="How long before the time limit the ranks save [s, 10 to 3600]."
    )
    max_requeues: int | None = Field(None, ge=0, description="How often a job may be requeued [default: no limit].")
    preflight: bool = Field(False, description="Try each node before training, in about half a minute.")
    exclude_bad: bool = Field(
        False, description="With preflight: queue the job again without nodes that are bad, instead of ending it."
    )
    modules: tuple[TextLine, ...] = Field((), description="Environment modules to load on the nodes.")
    setup: tuple[ShellLine, ...] = Field((), description="Shell lines to run on the first node before the ranks start.")
    python: PlainPath | None = Field(None, description="Python on the nodes [default: the one that submits].")
    container: Container | None = Field(None, description="Image to run in.")
    scratch: TextLine | None = Field(
        None,
        description="Folder on each node's local disk, such as $TMPDIR, for a copy of data.shards and build caches.",
    )
    network_interface: SlurmName | None = Field(
        None, description="Network interface between the nodes, for NCCL and gloo, such as ib0."
    )


class JobOptions(Profile):
    """Options of one submission: the profile, overridden by the command line and completed by the cluster's values."""

    cluster: Literal["slurm", "local"] = "slurm"
    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1)
    chdir: TextLine | None = None
    time_min: int | None = None
    after: Annotated[str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")] | None = None
    at_once: int = Field(4, ge=1)

    @property
    def ranks(self) -> int:
        """Number of ranks on all nodes together."""
        return self.nodes * self.ranks_per_node

    @property
    def cpus_per_rank(self) -> int | None:
        """CPUs of a rank, at least one; None where nothing is said of them."""
        return self.cpus_per_node and max(1, self.cpus_per_node // self.ranks_per_node)

    @property
    def memory(self) -> str | None:
        """Memory of a node, as SLURM's --mem takes it; None where nothing is said of it."""
        return None if self.memory_gb is None else f"{max(1, round(self.memory_gb * 1024))}M"


def load_profile(file: Path) -> Profile:
    """Reads a profile, named by its file or by its name in slurm/profiles/.

    Raises UserError if it cannot be read, or has an unknown key or an invalid value.
    """
    file = find_yaml(file, PROFILES, "profile")
    try:
        values = {key: value for key, value in read_yaml(file).items() if value != {}}  # {}: a key without a value
        return Profile.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(file), list(Profile.model_fields), reference="slurm/README.md") from None


def plain_path(path: Path, key: str) -> Path:
    """The absolute path, if SLURM and PYTHONPATH take it literally. Raises UserError otherwise."""
    absolute = path.absolute()
    if not re.fullmatch(r"[^%\\:\x00-\x1f\x7f]+", str(absolute)):
        raise UserError(
            f"{key}={str(absolute)!r}",
            "contains %, \\, : or a line break, which SLURM or PYTHONPATH would interpret",
            "rename it",
        )
    return absolute


def working_directory() -> str:
    """The directory of this command, which relative paths refer to. Raises UserError if SLURM would not take it."""
    folder = str(Path.cwd())
    if not folder.isprintable():
        raise UserError(f"working directory {folder!r}", "not one line of printable characters", "rename it")
    return folder
