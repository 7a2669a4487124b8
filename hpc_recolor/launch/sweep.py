"""The configs of a sweep: one for each file, or one for each combination of a grid's values."""

import itertools
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from hpc_recolor.config import Config
from hpc_recolor.config_file import find_config, load_config, merge, nest, read_nulls, read_yaml
from hpc_recolor.launch.defaults import DefaultValues
from hpc_recolor.runtime.errors import UserError

NO_DEFAULTS = DefaultValues()


def find_configs(
    file: Path | None,
    sweep: Sequence[Path],
    grid: Sequence[str],
    overrides: dict[str, Any],
    defaults: DefaultValues = NO_DEFAULTS,
) -> list[Config]:
    """The configs of a submission: those of a sweep's files or of a grid, else the one of `file` and overrides.

    defaults: for what neither says; without `file`, that of the defaults and its values are taken, over one another.
    """
    if sweep:
        return of_files(sweep, overrides, defaults)
    if file is None:
        file, overrides = defaults.values.get("config"), _over_defaults(overrides, defaults, {})
    else:
        overrides = _over_defaults(overrides, defaults, read_yaml(find_config(file)))
    return of_grid(grid, file, overrides) if grid else [load_config(file, overrides)]


def _over_defaults(overrides: dict[str, Any], defaults: DefaultValues, of_file: dict[str, Any]) -> dict[str, Any]:
    """The overrides, completed by the defaults that the file does not set either."""
    return merge(defaults.of_config(of_file, overrides), overrides)


def of_files(files: Sequence[Path], overrides: dict[str, Any], defaults: DefaultValues = NO_DEFAULTS) -> list[Config]:
    """A config for each file, with the same overrides. Runs are named by `run.name`, or else by their file.

    defaults: for what neither says. Raises UserError for an invalid file, or if the overrides name the run.
    """
    if overrides.get("run", {}).get("name"):
        raise UserError(
            f"run.name={overrides['run']['name']}",
            "every run of a sweep needs its own name",
            "set run.name in the files",
        )
    configs = []
    for file in map(find_config, files):
        tree = read_yaml(file)
        run = tree.get("run", {})
        name = {"name": file.stem} if isinstance(run, dict) and "name" not in run else {}
        values = _over_defaults(overrides, defaults, tree)
        configs.append(load_config(file, merge(values, {"run": name} if name else {})))
    return configs


def of_grid(grid: Sequence[str], file: Path | None, overrides: dict[str, Any]) -> list[Config]:
    """A config for each combination of `section.field=value,value,...`, over a file and overrides.

    Runs are named by `run.name` and their values: NAME-lr-1e-4. Raises UserError for any other spelling.
    """
    axes = [_axis(text) for text in grid]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        key = max(keys, key=keys.count)
        raise UserError(f"--grid={key}", "given twice", f"give all its values at once: {key}=A,B,C")
    base = load_config(file, overrides).run.name
    configs: dict[str, Config] = {}
    for values in itertools.product(*(values for _, values in axes)):
        tree = merge(overrides, read_nulls(nest(dict(zip(keys, values, strict=True)))))
        name = _unique_name("-".join([base, *map(_part, keys, values)]), configs)
        configs[name] = load_config(file, merge(tree, {"run": {"name": name}}))
    return list(configs.values())


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    if not equals or key.count(".") != 1 or not all(values.split(",")):
        raise UserError(f"--grid={text}", "not section.field=value,value", "write for example train.lr=1e-4,2e-4")
    if key == "run.name":
        raise UserError("--grid=run.name", "runs of a grid are named by their values", "choose other keys")
    return key, values.split(",")


def _part(key: str, value: str) -> str:
    """A part of a run's name: lr-1e-4."""
    return f"{key.split('.')[1]}-{re.sub(r'[^A-Za-z0-9._-]', '_', value)}"


def _unique_name(name: str, taken: Container[str]) -> str:
    """The name, with a number appended if it is taken."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
