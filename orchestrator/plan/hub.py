"""A config.json as Transformers reads it: what is missing has the default of its class, and of two
spellings of one setting the one counts that counts there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import UserError
from strategies.hub_config import HubConfig
from workers.checkpoint_files import read_json

GENERATION = "generation_config.json"


def completed(config: Path, fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    """The `fields` of the file `config`, completed by the class that Transformers has for them. No
    code of the checkpoint is run.

    This imports transformers, and so torch, which takes seconds. Raises LayoutError for a model
    that is not run here, and UserError where Transformers refuses the file.
    """
    read = HubConfig(fields, name)
    read.refuse_remote_code()
    family = read.family()
    if fields.get("model_type") is None:
        raise UserError(
            f"{config}: the field model_type is missing, by which Transformers knows the class; "
            f'add "model_type": "{family}"'
        )
    if fields.get("num_attention_heads") == 0:  # by which the classes divide
        raise UserError(f"{config}: num_attention_heads is 0; it must be 1 or more")
    whole = _through_transformers(config, fields)
    if whole["model_type"] != family:
        raise UserError(
            f"{config}: by model_type and layer_types this is a {whole['model_type']}, by "
            f"architectures a {family}; make them agree"
        )
    return whole


def _through_transformers(config: Path, fields: Mapping[str, object]) -> Mapping[str, object]:
    from transformers import AutoConfig
    from transformers.utils import logging

    level = logging.get_verbosity()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        read = AutoConfig.from_pretrained(
            config.parent, local_files_only=True, trust_remote_code=False
        )
        whole: Mapping[str, object] = read.to_dict()
    except Exception as error:  # a class raises whatever its fields lead it to
        raise UserError(f"{config}: {_reason(error, fields)}") from error
    finally:
        logging.set_verbosity(level)  # type: ignore[no-untyped-call]
    return whole


def _reason(error: Exception, fields: Mapping[str, object]) -> str:
    """What a config class says of the `fields` of a file, in one line."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    wrong = re.match(r"Validation error for field '(\w+)'", text)
    if wrong is None:
        return f"Transformers cannot read it: {type(error).__name__}: {text}"
    # The class has moved the older spelling to the newer one.
    name = "rope_scaling" if wrong[1] not in fields else wrong[1]
    return f"a field has the wrong type: {name} is {fields.get(name)!r}"


def end_tokens(folder: Path, fields: Mapping[str, object]) -> object:
    """What ends a text, as `generate` has it: what generation_config.json says and nothing else,
    and without that file what config.json says."""
    file = folder / GENERATION
    if not file.is_file():
        return fields.get("eos_token_id")
    said = read_json(file)
    try:
        HubConfig(said, folder.name).token_ids("eos_token_id")
    except TypeError as error:
        raise UserError(f"{file}: a field has the wrong type: {error}") from error
    return said.get("eos_token_id")
