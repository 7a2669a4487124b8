"""Files that come with the package: in a wheel they are inside it, in the repository beside it."""

import difflib
from os.path import exists, isdir, isfile  # as Path's own, but False for names that no file can have
from pathlib import Path

import hpc_recolor
from hpc_recolor.runtime.errors import UserError

CONFIGS = "configs"
SLURM = "slurm"
PROFILES = f"{SLURM}/profiles"
DEV_CLUSTER = f"{SLURM}/dev_cluster"


def packaged(folder: str) -> Path:
    """One of the folders above."""
    package = Path(hpc_recolor.__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def find_yaml(given: Path, folder: str, key: str) -> Path:
    """The YAML file that a user names: a path, or without `.yaml` the name of one in `folder`, as `study/small/ROW`.

    key: what names it. Raises UserError, with the names there are, for a name that is neither; a path need not exist.
    """
    is_path = given.is_absolute() or given.suffix in (".yaml", ".yml") or (exists(given) and not isdir(given))
    file = packaged(folder) / f"{given}.yaml"
    if is_path or isfile(file):
        return given if is_path else file
    names = [path.relative_to(packaged(folder)).with_suffix("") for path in packaged(folder).rglob("*.yaml")]
    near = difflib.get_close_matches(str(given), map(str, names), n=1)
    guess = f", did you mean {near[0]}?" if near else ""
    raise UserError(f"{key}={given}", f"no such file or name{guess}", f"use a YAML file, or {_listed(names, given)}")


def _listed(names: list[Path], given: Path) -> str:
    """The names in the folder of the given one, and the folders beside them."""
    here = given.parent if any(given.parent in name.parents for name in names) else Path()
    below = [name.relative_to(here) for name in names if here in name.parents]
    shown = {str(here / name) if len(name.parts) == 1 else f"{here / name.parts[0]}/..." for name in below}
    return f"one of {', '.join(sorted(shown))}"
