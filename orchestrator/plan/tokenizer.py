"""A checkpoint's own tokenizer, loaded only where text is read or shown."""

from __future__ import annotations

from collections.abc import Sequence
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
