"""What `--model` means: a preset or a folder with a config.json, checked before anything is
reserved."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.experiment import PRESETS, preset_names
from orchestrator.plan import checkpoint
from orchestrator.plan.tokenizer import load_tokenizer
from strategies.errors import LayoutError
from strategies.shapes import ModelShape

SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_positions",
)


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

    Raises UserError for an unknown name, a broken config.json or checkpoint, or a preset without
    weights, and LayoutError for an architecture that is not run here.
    """
    config = _config_file(model)
    fields = checkpoint.read_json(config)
    shape = _shape(config, fields)
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
    checkpoint.check(folder, shape)
    return ResolvedModel(shape, folder, tokenizer, special)


def _config_file(model: str) -> Path:
    for preset in (PRESETS / f"{model}.json", PRESETS / model / "config.json"):
        if model in preset_names() and preset.is_file():
            return preset
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve() / "config.json"
    if folder.is_dir():
        raise UserError(
            f"the folder {model} has no config.json; --model wants a Hugging Face checkpoint folder"
        )
    presets = preset_names()
    near = difflib.get_close_matches(model.lower(), presets, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise UserError(
        f"there is no model '{model}'{hint} Presets: {', '.join(presets)}; or give a folder with "
        "a config.json"
    )


def _shape(config: Path, fields: Mapping[str, object]) -> ModelShape:
    name = config.parent.name if config.name == "config.json" else config.stem
    try:
        shape = ModelShape.from_config(fields, name)
    except KeyError as error:
        raise UserError(f"{config}: the field {error.args[0]} is missing") from error
    except LayoutError:
        raise
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{config}: a field has the wrong type: {error}") from error
    for size in SIZES:
        if getattr(shape, size) < 1:
            raise UserError(f"{config}: {size} is {getattr(shape, size)}; it must be 1 or more")
    return shape


def _special_ids(
    config: Path, fields: Mapping[str, object], tokenizer: Path | None
) -> tuple[int, ...]:
    found: set[int] = set()
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found.update(_ids(config, field, fields.get(field)))
    file = tokenizer / "tokenizer.json" if tokenizer else None
    if file and file.is_file():
        found |= _special_tokens(file)
    return tuple(sorted(found))


def _ids(config: Path, field: str, value: object) -> list[int]:
    """One token id, or a list of them; none where the field is missing."""
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    known = [one for one in ids if isinstance(one, int)]
    if known != ids:
        raise UserError(f"{config}: a field has the wrong type: {field} is {value!r}, no token id")
    return known


def _special_tokens(file: Path) -> set[int]:
    """The ids of a tokenizer's special tokens. Raises UserError where the list of them is
    broken."""
    tokens: Any = checkpoint.read_json(file).get("added_tokens", ())
    try:
        return {int(token["id"]) for token in tokens if token.get("special")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: added_tokens cannot be read ({type(error).__name__}: {error})"
        ) from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
