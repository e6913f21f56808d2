"""An experiment from a YAML file and flags: the same fields, and flags win."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment

EXAMPLES = {"strategy": "tp4", "max_concurrency": "8"}  # of the lists that must not be empty


def load_experiment(config: Path | None, flags: Mapping[str, Any]) -> Experiment:
    """The experiment of `config` with the `flags` that were given laid over it. Raises UserError
    with one line for bad input."""
    fields = dict(read_yaml(config)) if config else {}
    try:
        return Experiment(**{**fields, **flags})
    except ValidationError as error:
        raise UserError(one_line(error, config)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError with file and line."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(
            f"{path}: expected fields and their values, as in 'strategy: tp4'; found "
            f"{type(value).__name__}"
        )
    return value


def one_line(error: ValidationError, source: Path | None = None) -> str:
    """The first thing wrong, as one line; an unknown field with the nearest known one."""
    first = error.errors()[0]
    where = f"{source}: " if source else ""
    field = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, Experiment.model_fields, n=1)
        return f"{where}there is no field '{field}'" + (
            f"; did you mean '{near[0]}'?" if near else ""
        )
    if first["type"] == "too_short" and field in EXAMPLES:
        return f"{where}{field} is empty; name at least one, as in {EXAMPLES[field]}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}{message}"
    return f"{where}{field}: {message[0].lower()}{message[1:]}, found {first['input']!r}"
