"""What a user asks `submit` for: flags over defaults over a profile, and where each value comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc_recolor.config import Config
from hpc_recolor.config_file import leaves, merge
from hpc_recolor.launch.defaults import FILES, DefaultValues, by_source
from hpc_recolor.launch.profile import JobOptions, Profile, load_profile
from hpc_recolor.launch.resolve import of_environment, resolve
from hpc_recolor.launch.slurm_command import SLURM
from hpc_recolor.launch.slurm_time import format_time
from hpc_recolor.runtime.errors import UserError

SHOWN = ("nodes", "partition", "account", "qos", "constraint", "gpus_per_node", "cpus_per_node", "memory_gb", "time")
# What is read from the cluster, or from this machine, unless it is given.
FOUND = ("partition", "gpus_per_node", "cpus_per_node", "time")


@dataclass(frozen=True)
class GivenOptions:
    """The flags, None where one was left out, and the defaults. job: flags of the job; fields: of the run's config."""

    config: Path | None
    profile: Path | None
    cluster_flag: Literal["slurm", "local"] | None
    job: dict[str, object]
    fields: dict[str, Any]
    defaults: DefaultValues

    @property
    def cluster(self) -> Literal["slurm", "local"]:
        """Where the job runs."""
        default: Literal["slurm", "local"] = self.defaults.values.get("cluster", "slurm")
        return self.cluster_flag or default

    @property
    def profile_named(self) -> Path | None:
        """The profile that flags or defaults name."""
        return self.profile or self.defaults.values.get("profile")

    def complete(self, needs_cluster: bool = True) -> tuple[JobOptions, str | None]:
        """The options of the submission, completed by what the cluster has, and why it could not be asked.

        needs_cluster: else a profile says enough of it, where SLURM does not answer. Raises UserError as `load_profile`
        and `resolve` do.
        """
        given = {key: self.defaults.values.get(key) if value is None else value for key, value in self.job.items()}
        merged = self._profile.model_dump(exclude_unset=True) | self.defaults.of_profile
        profile = Profile.model_validate(merged)
        try:
            return resolve(profile, given, self.cluster), None
        except UserError as error:
            if needs_cluster or not merged or error.subject != SLURM:
                raise
            return resolve(profile, given, self.cluster, ask=False), error.problem

    def sources(self, options: JobOptions, config: Config) -> Iterator[str]:
        """Where the values of the submission come from, a line each source. config: of its first run."""
        time = None if options.time_min is None else format_time(options.time_min)
        of_job = {key: getattr(options, key) for key in SHOWN} | {"time": options.time or time}
        of_run = dict(leaves(config.model_dump()))
        # Of the files: what neither a flag nor a config file that a flag names has replaced.
        used = {key: value for key, value in leaves(self.defaults.values) if of_run.get(key, value) == value}
        flags = {"config": self.config, "profile": self.profile, **self.job, **dict(leaves(self.fields))}
        layers = {
            "the command line": flags,
            **{name: self._of_file(name, used) for name in reversed(FILES)},
            f"profile {self.profile_named}": self._profile.model_dump(exclude_unset=True),
            "SBATCH_*": of_environment(self.cluster),
            "this machine" if self.cluster == "local" else SLURM: {key: of_job[key] for key in FOUND},
        }
        return by_source(merge(used, _without_none(flags | of_job)), layers)

    def _of_file(self, name: str, used: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in used.items() if self.defaults.sources[key] == name}

    @property
    def _profile(self) -> Profile:
        return load_profile(self.profile_named) if self.profile_named else Profile()


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
