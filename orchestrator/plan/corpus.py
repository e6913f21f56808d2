"""Text that a model is trained on, as the tokens of its checkpoint's tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError
from orchestrator.plan.datasets.texts import documents
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.prompts import check_characters
from orchestrator.plan.tokenizer import load_tokenizer
from strategies import TrainingLoad


def pack(
    path: Path,
    model: ResolvedModel,
    load: TrainingLoad,
    column: str | None = None,
    split: str | None = None,
) -> NDArray[np.int32]:
    """int32 [sequences, load.seq_len + 1], each a sequence with the label of its last token: the
    documents at `path` (`texts.documents`) one after another, each ended by the model's end token.
    What is left over is left out.

    Raises UserError for what cannot be read, a model without a tokenizer or with one that is not
    its own, and for less text than a step trains on.
    """
    tokens: array[int] = array("i")
    for where, ids in _tokenized(path, model, column, split):
        if ids and max(ids) >= model.shape.vocab_size:
            raise UserError(
                f"{where}: the tokenizer of {model.name} makes token {max(ids)}, and its "
                f"vocabulary has {model.shape.vocab_size}; use a checkpoint with its own tokenizer"
            )
        tokens.extend(ids)
    size = load.seq_len + 1
    count = len(tokens) // size
    if count < load.global_batch_size:
        raise UserError(_too_little(path, len(tokens), load))
    return np.array(tokens[: count * size], dtype=np.int32).reshape(count, size)


def _tokenized(
    path: Path, model: ResolvedModel, column: str | None, split: str | None
) -> Iterator[tuple[str, Sequence[int]]]:
    """(where it is, token ids) of each document."""
    if model.tokenizer is None:
        raise UserError(
            f"{path} is text, and {model.name} comes without a tokenizer; give the folder of a "
            "checkpoint as the model, or train on random tokens"
        )
    codec, end = load_tokenizer(model.tokenizer), model.shape.eos_token_ids[:1]
    for where, text in documents(path, column, split):
        check_characters(text, where)
        yield where, (*codec.encode(text), *end)


def _too_little(path: Path, tokens: int, load: TrainingLoad) -> str:
    if not tokens:
        return f"{path}: there is no text in it"
    count = tokens // (load.seq_len + 1)
    there = f"{count} sequence{'' if count == 1 else 's'} of {load.seq_len} tokens and a label"
    return (
        f"{path} has {tokens} tokens, {there}, and a step trains on {load.global_batch_size}; use "
        "more text, shorter sequences or a smaller global batch"
    )
