"""Defaults of `submit`: hpc_recolor.yaml in the working directory, over the one in ~/.config."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hpc_recolor.config import Config, policies
from hpc_recolor.config_file import explain, leaves, merge, nest, read_yaml
from hpc_recolor.launch.profile import Profile

DEFAULTS = "hpc_recolor.yaml"
FILES = (f"~/.config/{DEFAULTS}", DEFAULTS)  # later ones win
PHOTOGRAPHS = {"data.photos", "data.shards"}


class Defaults(Config, Profile):
    """What a file of defaults may hold: flags of `submit`, keys of a profile, and a run's config."""

    config: Path | None = Field(None, description="As --config.")
    profile: Path | None = Field(None, description="As --profile.")
    cluster: Literal["slurm", "local"] | None = Field(None, description="As --cluster.")
    nodes: int | None = Field(None, ge=1, description="As --nodes.")
    at_once: int | None = Field(None, ge=1, description="As --at-once.")


@dataclass(frozen=True)
class DefaultValues:
    """The values of the files. sources: the file of each, by key."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def of_config(self, *others: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the run's config, nested, that none of these trees sets. A run has photos or shards, not both."""
        taken = {key for tree in others for key, value in leaves(dict(tree)) if value is not None}
        if taken & PHOTOGRAPHS:
            taken |= PHOTOGRAPHS
        own = leaves({key: value for key, value in self.values.items() if key in Config.model_fields})
        return nest({key: value for key, value in own if key not in taken})

    @property
    def of_profile(self) -> dict[str, Any]:
        """Those that a profile may have too."""
        return {key: value for key, value in self.values.items() if key in Profile.model_fields}


def read_defaults() -> DefaultValues:
    """The defaults of this user in this folder. Raises UserError if a file is not legal."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in FILES:
        if (file := Path(name).expanduser()).is_file():
            found = _read(file, name)
            values = merge(values, found)
            sources |= {key: name for key, _ in leaves(found)}
    return DefaultValues(values, sources)


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        return Defaults.model_validate(read_yaml(file)).model_dump(exclude_unset=True)
    except ValidationError as error:
        keys = [*policies(), *Defaults.model_fields]
        raise explain(error, name, keys, reference="slurm/README.md") from None


def by_source(values: Mapping[str, object], layers: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """A line for each source of these values: `from SOURCE: key=value, ...`.

    layers: by source, in their order, what each says; the first that says something of a key is its source.
    """
    of_source: dict[str, list[str]] = {}
    for key, value in values.items():
        source = next((name for name, layer in layers.items() if layer.get(key) is not None), None)
        if source:
            of_source.setdefault(source, []).append(f"{key}={value}")
    return (f"from {source}: {', '.join(of_source[source])}" for source in layers if source in of_source)
