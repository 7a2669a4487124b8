"""Config files: YAML in and out, trees of values merged and compared. The only reader and writer of YAML."""

import difflib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpc_recolor.config import Config, optional_keys, policies
from hpc_recolor.models.shapes import check_shapes
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.packaged import CONFIGS, find_yaml

NOTHING: Mapping[str, Any] = MappingProxyType({})

# What stands for None where values are text; a file of that name is ./null.
NULLS = ("null", "none")

# What PyYAML raises: for values that are not of the type they look like or are tagged as, all but the first.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError)
# Of a text that libyaml may read. Ours have two columns, and brackets in what users write only.
MOST_COLUMNS, MOST_BRACKETS = 20, 100
# Of what a file contains, in a message. Aliases in YAML can make an endless value from a few lines.
MOST_PROBLEMS = 20
LONGEST_VALUE, LONGEST_NUMBER = 200, 40
SHORTENED = reprlib.Repr()
SHORTENED.maxlevel = 3
SHORTENED.maxlist = SHORTENED.maxdict = SHORTENED.maxset = 20
SHORTENED.maxstring = SHORTENED.maxother = LONGEST_VALUE


def load_config(base: str | PathLike[str] | Config | None = None, overrides: Mapping[str, Any] = NOTHING) -> Config:
    """A config with `overrides` in place of its values.

        config = load_config("quickstart", {"data.photos": "photos", "train.epochs": 3})

    base: a YAML file, the name of a config in this package, a `Config`, or None for the defaults; overrides: by key, or
    nested as in a file. Raises UserError if the file is missing, is not a YAML mapping, or holds an unknown key or an
    illegal value.
    """
    source, tree = _read_base(base)
    return _checked(source, merge(tree, nest(overrides)))


def load_recorded(file: Path) -> Config:
    """The config that a run folder records. Raises UserError as `load_config` does."""
    return _checked(str(file), read_yaml(file, _parse_recorded))


def _checked(source: str, tree: dict[str, Any]) -> Config:
    """The config of these values, or UserError."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, source) from None
    check_shapes(config)
    if config.loss.adversarial == "none" and not config.loss.l1_weight:
        raise UserError("loss.l1_weight=0", "with loss.adversarial=none there is nothing to train on", "raise one")
    return config


def _read_base(base: str | PathLike[str] | Config | None) -> tuple[str, dict[str, Any]]:
    """Where the values that were given come from, and these values."""
    if base is None:
        return "config", {}
    if isinstance(base, Config):
        return f"config of {base.run.name}", base.model_dump(exclude_unset=True)
    file = find_config(base)
    return str(file), read_yaml(file)


def find_config(file: str | PathLike[str]) -> Path:
    """The file of a config that is named by path, or by its name in this package; see `find_yaml`."""
    return find_yaml(Path(file), CONFIGS, "config")


def read_yaml(file: Path, parse: Callable[[str], object] = yaml.safe_load) -> dict[str, Any]:
    """A config file as nested dictionaries. Raises UserError if it cannot be read as a YAML mapping."""
    subject = f"config file {file}"
    try:
        tree = parse(file.read_text())
    except OSError as error:
        raise UserError(subject, str(error.strerror), "name an existing file") from None
    except UnicodeDecodeError:
        raise UserError(subject, "not text", "name a YAML file") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = _shown(str(getattr(error, "problem", error)))
        raise UserError(subject, f"not valid YAML{place} ({problem})", "correct it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(subject, f"holds a {type(tree).__name__}", "write 'section: {key: value}'")
    return {section: {} if values is None else values for section, values in tree.items()}


def _parse_recorded(text: str) -> object:
    """By libyaml in a tenth of the time, where PyYAML was built with it and the text is as simple as our own.

    libyaml crashes where PyYAML refuses what is nested deeply, and reads tabs that it refuses.
    """
    if hasattr(yaml, "CSafeLoader") and "\t" not in text and not _may_be_deep(text):
        with suppress(*YAML_ERRORS):  # what is wrong is told by PyYAML
            return yaml.load(text, yaml.CSafeLoader)  # noqa: TID251  # makes plain data
    return yaml.safe_load(text)


def _may_be_deep(text: str) -> bool:
    """Whether more than a few levels may be nested: each takes a bracket, or a column before the text of a line."""
    columns = max((len(line) - len(line.lstrip(" -?:")) for line in text.splitlines()), default=0)
    return columns > MOST_COLUMNS or text.count("[") + text.count("{") > MOST_BRACKETS


def to_yaml(config: Config) -> str:
    """The config as YAML text that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def changed_keys(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` for every difference that would make `new` another run than `old`."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key, policy in policies().items()
        if before[key] != after[key] and not policy.may_change
    ]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two nested mappings in a new one; where both have a value, that of `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping with their keys, as `section.key`. An empty mapping counts as a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `leaves`: a nested mapping from values by `section.key`; what is nested already stays so."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        tree = merge(tree, {section: nest({rest: value})} if rest else {key: value})
    return tree


def read_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    """The values of a command line, which are text, with None in place of NULLS for those that may be None."""
    return nest({key: None if key in optional_keys() and value in NULLS else value for key, value in leaves(tree)})


def explain(
    error: ValidationError, source: str, keys: Sequence[str] | None = None, reference: str = "--help"
) -> UserError:
    """All that pydantic found, as one error.

    source: where the values came from; keys: the legal ones, by default a run config's; reference: where these are
    documented.
    """
    legal = keys or [*policies(), *Config.model_fields]
    details = error.errors()
    problems = [_explain_one(detail, legal) for detail in details[:MOST_PROBLEMS]]
    problems += [f"and {len(details) - MOST_PROBLEMS} more"] if len(details) > MOST_PROBLEMS else []
    return UserError(source, "; ".join(problems), f"see {reference}")


def _explain_one(detail: ErrorDetails, legal: Sequence[str]) -> str:
    key = _shown(".".join(str(part) for part in detail["loc"]))
    if detail["type"] == "extra_forbidden":
        if len(detail["loc"]) == 1 and "." in key:
            return f"unknown key '{key}', in a file written nested, as {key.replace('.', ': {')}: ...}}"
        near = difflib.get_close_matches(key, legal, n=1, cutoff=0.5)
        return f"unknown key {key}" + (f", did you mean {near[0]}?" if near else "")
    if detail["type"] == "invalid_key":
        return f"key {_shown(detail['input'])} is not text"
    return f"{key}={_shown(detail['input'])}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _shown(value: object) -> str:
    """A value in a message. Of what is long only the beginning."""
    if isinstance(value, int) and abs(value) >= 10**LONGEST_NUMBER:
        return f"a number of more than {LONGEST_NUMBER} digits"  # Python refuses to print very large ones
    text = SHORTENED.repr(value) if isinstance(value, list | dict | set | tuple) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
