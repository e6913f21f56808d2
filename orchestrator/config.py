"""An experiment from a YAML file and flags: the same fields, and flags win."""

from __future__ import annotations

import contextlib
import difflib
import functools
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, preset_names
from orchestrator.experiment.pairs import once
from orchestrator.experiment.places import fault_of

MOST_BYTES = 1_000_000
# fields of a file
PATHS = ("dataset_path", "fabric", "data", "save_checkpoint", "resume_from", "result_dir")
EXAMPLES = {"strategy": "tp4", "max_concurrency": "8"}  # of the lists that must not be empty


# A value as a message shows it. YAML's aliases make values of any length out of a few lines.
_FOUND = reprlib.Repr()
_FOUND.maxlevel, _FOUND.maxlong, _FOUND.maxstring, _FOUND.maxother = 2, 60, 120, 60


def given(
    metadata: tuple[str, ...] = (), engine_arg: tuple[str, ...] = (), **options: Any
) -> dict[str, object]:
    """Options that were given, those that are not None and not (), as fields of an experiment, with
    pairs KEY=VALUE as mappings. Raises UserError for a text that is no pair, and for two values of
    a key."""
    fields = {name: value for name, value in options.items() if value is not None and value != ()}
    for name, texts in (("metadata", metadata), ("engine_arg", engine_arg)):
        if texts:
            fields[name] = _pairs(f"--{name.replace('_', '-')}", texts)
    return fields


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (key, separator, _) in zip(texts, pairs, strict=True):
        if not key or not separator:
            raise UserError(f"{option} '{text}' is not KEY=VALUE")
    try:
        return once(option, ((key, value) for key, _, value in pairs))
    except ValueError as error:
        raise UserError(str(error)) from None


def load_experiment(config: Path | None, flags: Mapping[str, Any]) -> Experiment:
    """The experiment of `config` with the `flags` that were given laid over it. A relative path in
    `config` is seen from the folder of that file. Raises UserError with one line for bad input."""
    there = _seen_from(config.parent, _from_home(read_yaml(config))) if config else {}
    fields = {**there, **_from_home(flags)}
    for name, value in fields.items():
        _check_text(name, value)
    try:
        return Experiment(**fields)
    except ValidationError as error:
        raise UserError(one_line(error, config)) from error


def _from_home(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their paths, of which `~` is a home, also where no shell has said so. Raises
    UserError for a path that is blank, and for a URI where none can be."""

    def whole(name: str, value: Any) -> Any:
        is_path = name in PATHS and isinstance(value, str | Path)
        if is_path and (fault := fault_of(str(value), takes_uris=name == "result_dir")):
            raise UserError(f"{name}: {fault}")
        if not is_path or not str(value).startswith("~"):
            return value
        try:
            return type(value)(Path(value).expanduser())
        except RuntimeError as error:
            raise UserError(
                f"{name}: {shown_value(str(value))} names the home of a user that is not known"
            ) from error

    return {name: whole(name, value) for name, value in fields.items()}


def _seen_from(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file in `folder`, with their relative paths from here."""

    def placed(name: str, value: Any) -> Any:
        is_path = name in PATHS and isinstance(value, str) and "://" not in value
        is_seen = bool(value) and (is_path or _is_checkpoint(folder, name, value))
        return str(folder / value) if is_seen else value

    return {name: placed(name, value) for name, value in fields.items()}


def _is_checkpoint(folder: Path, name: str, value: object) -> bool:
    """Whether a value is the path of a model, and not the name of one."""
    if name != "model" or not isinstance(value, str) or value in preset_names():
        return False
    with contextlib.suppress(OSError, ValueError):  # of a name that no file can have
        return (folder / value).is_dir()
    return False


def _check_text(name: str, value: Any) -> None:
    """Raise UserError for a text that no file, host or model can have as its name."""
    for item in value if isinstance(value, (list, tuple)) else (value,):
        text = str(item) if isinstance(item, (str, Path)) else ""
        if "\0" in text or any("\ud800" <= one <= "\udfff" for one in text):
            raise UserError(
                f"{name} holds {shown_value(text)}, in which a character is no text: a NUL byte, "
                "or one that is not UTF-8; leave it out"
            )


def shown_value(value: object) -> str:
    """A value as a message shows it, of a bounded length."""
    return _FOUND.repr(value)


def read_yaml(path: Path, example: str = "strategy: tp4") -> dict[str, Any]:
    """The mapping in a YAML file. example: of what belongs there. Raises UserError with file and
    line."""
    import yaml

    text = _text(path)
    try:
        value = yaml.load(text, _loader())
    except RecursionError as error:
        raise UserError(
            f"{path} is nested too deep; it holds fields and values, as in '{example}'"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a month 13
        raise UserError(f"{path} holds a value that cannot be read: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(
            f"{path}: expected fields and their values, as in '{example}'; found "
            f"{type(value).__name__}"
        )
    return value


@functools.cache
def _loader() -> Any:
    """What reads safe YAML as `yaml.safe_load` does, which keeps the last of two values of a field
    and says nothing."""
    import yaml

    class Once(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set[str]()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                    problem = f"'{key.value}' is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            return super().construct_mapping(node, deep)

    return Once


def _text(path: Path) -> str:
    """The text of a file. Raises UserError where it cannot be read or is too large to be an
    experiment, as a device is that has no end."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    except ValueError as error:  # of the name
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES} bytes, which no such file is")
    return text


def one_line(error: ValidationError, source: Path | None = None) -> str:
    """The first thing wrong, as one line; an unknown field with the nearest known one."""
    first, *others = error.errors()
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
    message = message.removesuffix(", unable to parse string as an integer")
    message = message.replace("not a valid path for <class 'pathlib.Path'>", "not a path")
    words = (one["msg"].removeprefix("Input should be") for one in others if _is_of(first, one))
    message = " or".join((message, *words))
    return f"{where}{field}: {message[0].lower()}{message[1:]}, found {shown_value(first['input'])}"


def _is_of(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the other is what the first might have been: a word instead of a number."""
    is_word = other["type"] == "literal_error"
    return is_word and (other["loc"][:1], other["input"]) == (first["loc"][:1], first["input"])
