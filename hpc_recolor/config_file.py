"""Config files: YAML in and out, values merged and compared, errors explained. The only reader and writer of YAML."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpc_recolor.config import FREE_TO_CHANGE, Config, check_size
from hpc_recolor.runtime.errors import UserError


def load_config(file: Path | None, overrides: dict[str, Any]) -> Config:
    """Read a config file and lay `overrides` (a nested mapping, as from the command line) over it.

    Raises UserError if the file is missing, is no YAML mapping, or holds an unknown key or an illegal value.
    """
    tree = _merge(read_yaml(file) if file else {}, overrides)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(file) if file else "command line")) from None
    check_size(config)
    if config.loss.adversarial == "none" and not config.loss.l1_weight:
        raise UserError("loss.l1_weight=0 with loss.adversarial=none: nothing is left to learn from; raise one of them")
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """A config file as nested dictionaries. Raises UserError if it cannot be read as a YAML mapping."""
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"config file {file}: {error.strerror}; name an existing file") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {file} is not text; name a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"config file {file}{place}: not legal YAML ({getattr(error, 'problem', error)})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"config file {file} holds a {type(tree).__name__}; write 'section: {{key: value}}'")
    return {section: {} if values is None else values for section, values in tree.items()}


def to_yaml(config: Config) -> str:
    """The config as YAML text that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def changed_keys(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` for every difference that would make `new` another run than `old`."""
    before, after = dict(_leaves(old.model_dump())), dict(_leaves(new.model_dump()))
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before
        if before[key] != after[key] and not any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)
    ]


def explain(error: ValidationError, source: str, keys: Sequence[str] | None = None, reference: str = "--help") -> str:
    """One line for all that pydantic found: key, value, reason and fix. source: where the values came from; keys: the
    legal ones, a run config's by default; reference: where these are documented."""
    legal = keys or [name for name, _ in _leaves(Config().model_dump())] + list(Config.model_fields)
    return f"{source}: " + "; ".join(_explain_one(detail, legal, reference) for detail in error.errors())


def _explain_one(detail: ErrorDetails, legal: Sequence[str], reference: str) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        if len(detail["loc"]) == 1 and "." in key:
            return f"unknown key '{key}'; in a file write it nested, as {key.replace('.', ': {')}: ...}}"
        near = difflib.get_close_matches(key, legal, n=1, cutoff=0.5)
        return f"unknown key {key}" + (f", did you mean {near[0]}?" if near else f"; {reference} lists the legal keys")
    if detail["type"] == "invalid_key":
        return f"key {detail['input']} is no text; {reference} lists the legal keys"
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{key}={detail['input']}: {reason}; see {reference}"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
