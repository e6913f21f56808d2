"""A checkpoint's own tokenizer, loaded only where text is read or shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from orchestrator.errors import UserError


class TextCodec(Protocol):
    """Text to token ids and back. `special`: add what the model expects around a prompt (its bos
    token)."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The token ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


class _Tokenizers:
    """The `tokenizers` library over a tokenizer.json: no transformers, no torch."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        # A file keeps what its training had set; Transformers leaves it out unless asked for it.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


class _Transformers:
    """Any other format, through AutoTokenizer; files of the folder alone, and no code from it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


@cache
def load_tokenizer(folder: Path) -> TextCodec:
    """The tokenizer of the checkpoint in `folder`. Raises UserError where it cannot be read."""
    file = folder / "tokenizer.json"
    try:
        return _Tokenizers(file) if file.is_file() else _Transformers(folder)
    except Exception as error:  # both libraries raise whatever their formats raise
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {type(error).__name__}: {error}"
        ) from error


@cache
def load_chat_template(folder: Path) -> Callable[[Sequence[tuple[str, str]]], str]:
    """What makes a prompt of messages, (role, text) each, by the chat template of the checkpoint in
    `folder`: up to where the reply begins, with its special tokens as text.

    Raises UserError where there is no template, or where it cannot be read. What it returns raises
    ValueError with the template's reason for refusing the messages.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # it raises whatever its formats raise
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {folder.name} has no chat template, so messages cannot become "
            "prompts; use a dataset of prompts, or a model that was trained for chats"
        )

    def text_of(messages: Sequence[tuple[str, str]]) -> str:
        said = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(
                tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            )
        except TemplateError as error:
            raise ValueError(str(error)) from error

    return text_of
