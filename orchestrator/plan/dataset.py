"""The prompts of a dataset, in file order: JSON lines, or ShareGPT's one JSON list."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.tokenizer import TextCodec, load_tokenizer

DEFAULT_OUTPUT_LEN = 128
# What the datasets of this project, of vLLM, of AIPerf and of OpenAI call the length of a reply.
LENGTHS = ("output_len", "output_tokens", "output_length", "max_tokens")
FORMATS = (
    "a dataset is JSON lines, each an object with 'prompt' or 'prompt_token_ids', or ShareGPT's "
    "JSON list of conversations"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One entry of a dataset; `where` names its file and line."""

    tokens: tuple[int, ...]
    output_len: int
    where: str


def read_prompts(path: Path, model: ResolvedModel, output_len: int | None) -> Iterator[Prompt]:
    """The prompts of the dataset at `path`.

    output_len: of every prompt for which the file gives none, 128 by default. In ShareGPT it
    replaces the length of the reply. Raises UserError with file and line for what cannot be read.
    """
    if path.exists() and not path.is_file():  # a device may have no end
        raise UserError(f"the dataset {path} is not a file; give one of JSON lines or ShareGPT's")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows tools begin with a mark
    except OSError as error:
        raise UserError(f"the dataset {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the dataset {path} is not UTF-8 text (byte {error.start})") from error
    if text.lstrip().startswith("["):
        return _sharegpt(path, text, model, output_len)
    return _json_lines(path, text.split("\n"), model, output_len or DEFAULT_OUTPUT_LEN)


# -- JSON lines


def _json_lines(
    path: Path, lines: Iterable[str], model: ResolvedModel, default: int
) -> Iterator[Prompt]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _prompt(line, f"{path}, line {number}", model, default)


def _prompt(line: str, where: str, model: ResolvedModel, default: int) -> Prompt:
    row = _object_of(line, where)
    if ("prompt" in row) == ("prompt_token_ids" in row):
        raise _not_a_prompt(where)
    return Prompt(_prompt_tokens(row, where, model), _output_len(row, where, default), where)


def _output_len(row: Mapping[str, Any], where: str, default: int) -> int:
    given = {name: row[name] for name in LENGTHS if name in row}
    for name, length in given.items():
        if not _is_int(length) or length < 1:
            raise UserError(f"{where}: {name} is {length!r}; it must be a whole number, 1 or more")
    if len(set(given.values())) > 1:
        raise UserError(f"{where}: {' and '.join(given)} differ; give one of them")
    return next(iter(given.values()), default)


def _object_of(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON: {error.msg} (column {error.colno}); {FORMATS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the JSON cannot be read: {error}") from error
    if not isinstance(row, dict):
        raise _not_a_prompt(where)
    return row


def _not_a_prompt(where: str) -> UserError:
    return UserError(
        f"{where}: expected an object with either 'prompt' or 'prompt_token_ids'; {FORMATS}"
    )


def _prompt_tokens(row: Mapping[str, Any], where: str, model: ResolvedModel) -> tuple[int, ...]:
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise UserError(f"{where}: prompt is {type(row['prompt']).__name__}; it must be text")
        return _encode(row["prompt"], where, model) if row["prompt"] else ()
    ids = row["prompt_token_ids"]
    if not isinstance(ids, list) or not all(map(_is_int, ids)):
        raise UserError(f"{where}: prompt_token_ids must be a list of whole numbers")
    return tuple(ids)


# -- ShareGPT


def _sharegpt(
    path: Path, text: str, model: ResolvedModel, output_len: int | None
) -> Iterator[Prompt]:
    for number, entry in enumerate(_conversations(path, text), start=1):
        where = f"{path}, conversation {number}"
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise UserError(f"{where}: expected an object with 'conversations', a list of turns")
        question, answer = _first_exchange(turns)
        if not (question and answer):  # some published ones open with a reply, or have none
            continue
        reply = output_len or len(_encode(answer, where, model, special=False))
        if reply:  # a text can be without tokens, as white space is to some tokenizers
            yield Prompt(_encode(question, where, model), reply, where)


def _conversations(path: Path, text: str) -> Sequence[object]:
    try:
        conversations: list[object] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the JSON cannot be read: {error}") from error
    return conversations


def _first_exchange(turns: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    for turn, reply in itertools.pairwise(turns):
        if turn.get("from") in ("human", "user"):
            return str(turn.get("value") or ""), str(reply.get("value") or "")
    return "", ""


# -- text


def _encode(text: str, where: str, model: ResolvedModel, special: bool = True) -> tuple[int, ...]:
    """The tokens of `text`. JSON can hold half of a surrogate pair. That is not a character, and no
    tokenizer accepts it."""
    half = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if half is not None:
        raise UserError(
            f"{where}: the text holds {half!a}, which is half of a character; leave it out"
        )
    return tuple(_codec(where, model).encode(text, special))


def _codec(where: str, model: ResolvedModel) -> TextCodec:
    if model.tokenizer is None:
        raise UserError(
            f"{where}: {model.name} comes without a tokenizer; use prompt_token_ids instead of "
            "prompt"
        )
    return load_tokenizer(model.tokenizer)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
