"""What `--model` means: a preset or a folder with a config.json, checked before anything is
reserved."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import Refused, UserError
from orchestrator.experiment import PRESETS, preset_names
from orchestrator.plan import checkpoint
from orchestrator.plan.hub import completed, end_tokens
from orchestrator.plan.tokenizer import load_tokenizer
from orchestrator.store.names import as_path
from strategies.hub_config import HubConfig
from strategies.shapes import ModelShape
from workers.checkpoint_files import folder_name, read_json

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that can be planned for.

    checkpoint: folder of weights; None = dummy ones. tokenizer: folder; None = there is none.
    special_ids: tokens with a meaning of their own (bos, eos, pad ...), which random prompts leave
    out.
    """

    shape: ModelShape
    checkpoint: Path | None
    tokenizer: Path | None
    special_ids: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder or preset."""
        return self.shape.name

    @property
    def decode(self) -> Callable[[Sequence[int]], str] | None:
        """Token ids to text, by the tokenizer that is loaded at the first call; None without
        one."""
        folder = self.tokenizer
        return None if folder is None else lambda ids: load_tokenizer(folder).decode(ids)


def resolve(model: str, load_format: str = "auto") -> ResolvedModel:
    """Find `model` and check its config and, unless `load_format` is "dummy", its weights.

    Raises Refused for an unknown name, a broken config.json or checkpoint, or a preset without
    weights, and an architecture that is not run here.
    """
    config = _config_file(model)
    fields = _fields(config, folder_name(model))
    shape = _shape(config, fields, folder_name(model))
    folder = config.parent if config.name == "config.json" else None
    tokenizer = folder if folder and _has_tokenizer(folder) else None
    special = _special_ids(config, fields, tokenizer)
    if load_format == "dummy":
        return ResolvedModel(shape, None, tokenizer, special)
    if folder is None:
        raise UserError(
            f"the preset {model} is a config without weights; use --load-format dummy or --model "
            "FOLDER"
        )
    return ResolvedModel(checkpoint.check(folder, shape), folder, tokenizer, special)


def _config_file(model: str) -> Path:
    for preset in (PRESETS / f"{model}.json", PRESETS / model / "config.json"):
        if model in preset_names() and preset.is_file():
            return preset
    if not model.strip():
        raise UserError(f"the model has no name. {_choice()}")
    folder = as_path(model)
    if (folder / "config.json").is_file():
        return folder.resolve() / "config.json"
    if folder.is_dir():
        raise UserError(
            f"the folder {model} has no config.json; --model wants a Hugging Face checkpoint folder"
        )
    near = difflib.get_close_matches(model.lower(), preset_names(), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise UserError(f"there is no model '{model}'{hint} {_choice()}")


def _choice() -> str:
    return f"Presets: {', '.join(preset_names())}; or give a folder with a config.json"


def _fields(config: Path, name: str) -> Mapping[str, object]:
    """The fields of a config. Those of a preset are complete: transformers is not imported."""
    raw = read_json(config)
    with _naming(config):
        whole = raw if PRESETS in config.parents else completed(config, raw, name)
    if config.name != "config.json":
        return whole
    return {**whole, "eos_token_id": end_tokens(config.parent, raw)}


def _shape(config: Path, fields: Mapping[str, object], name: str) -> ModelShape:
    with _naming(config):
        return ModelShape.from_config(fields, name)


@contextmanager
def _naming(config: Path) -> Iterator[None]:
    """Make a UserError of what reading the fields of `config` raises."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{config}: the field {error.args[0]} is missing") from error
    except Refused:
        raise
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{config}: a field has the wrong type: {error}") from error


def _special_ids(
    config: Path, fields: Mapping[str, object], tokenizer: Path | None
) -> tuple[int, ...]:
    read, names = HubConfig(fields, config.name), ("bos_token_id", "eos_token_id", "pad_token_id")
    with _naming(config):
        found = set[int]().union(*map(read.token_ids, names))
    if tokenizer and (tokenizer / TOKENIZER).is_file():
        found |= _special_tokens(tokenizer / TOKENIZER)
        load_tokenizer(tokenizer)  # so that a broken one is met before the first run, not after it
    return tuple(sorted(found))


def _special_tokens(file: Path) -> set[int]:
    """The ids of a tokenizer's special tokens. Raises UserError where the list of them is
    broken."""
    tokens: Any = read_json(file).get("added_tokens", ())
    try:
        return {int(token["id"]) for token in tokens if token.get("special")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: added_tokens cannot be read ({type(error).__name__}: {error})"
        ) from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (TOKENIZER, "tokenizer_config.json"))
