"""Prompts as text or token ids, and conversations in the form of ShareGPT."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from orchestrator.errors import UserError
from orchestrator.plan.datasets.rows import OF_SAMPLING, OUTPUT_LEN, Entry, Format, Row, Said, alike

HUMAN = ("human", "user")
TEXT = (str, type(None))  # null, where nothing was said


def _prompt(row: Row) -> Entry:
    texts, ids = row.has("prompt"), row.has("prompt_token_ids")
    if (texts and ids) or not any(name in row.fields for name in ("prompt", "prompt_token_ids")):
        raise UserError(
            f"{row.where}: expected either 'prompt' or 'prompt_token_ids', with 'output_len'"
        )
    length = row.whole("output_len", least=1) if row.has("output_len") else None
    return Entry(row.where, _token_ids(row) if ids else row.text("prompt"), length)


def _token_ids(row: Row) -> tuple[int, ...]:
    ids = row.value("prompt_token_ids")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise UserError(f"{row.where}: prompt_token_ids must be a list of whole numbers")
    return tuple(ids)


def _first_exchange(row: Row) -> Entry | None:
    question, answer = _exchange(_said(row))
    if not (question and answer):  # some published ones open with a reply, or have none
        return None
    return Entry(row.where, question, reply=answer)


def _said(row: Row) -> Sequence[Mapping[str, object]]:
    turns = row.value("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{row.where}: expected 'conversations', a list of turns")
    for place, turn in enumerate(turns, start=1):
        if not isinstance(turn.get("from"), str) or not isinstance(turn.get("value", 0), TEXT):
            there = ", ".join(f"{name} ({type(value).__name__})" for name, value in turn.items())
            way_out = "--dataset-columns messages=conversations reads messages"
            raise UserError(
                f"{row.where}, turn {place}: a turn has 'from' and 'value', which are texts; found "
                f"{there[:100] or 'nothing'}{f'; {way_out}' if 'role' in turn else ''}"
            )
    return turns


def _exchange(turns: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    for turn, reply in itertools.pairwise(turns):
        if turn.get("from") in HUMAN and reply.get("from") not in HUMAN:
            return _text(turn), _text(reply)
    return "", ""


def _every_exchange(row: Row) -> Sequence[Entry]:
    """What is said to a human who has just spoken is a reply; all before it is its prompt."""
    said = _said(row)
    texts = tuple(map(_text, said))
    human = [turn.get("from") in HUMAN for turn in said]
    return [
        Entry(f"{row.where}, turn {place + 1}", Said(texts[:place]), reply=texts[place])
        for place in range(1, len(said))
        if human[place - 1] and not human[place] and texts[place - 1] and texts[place]
    ]


def _text(turn: Mapping[str, object]) -> str:
    return str(turn.get("value") or "")


PROMPTS = Format(
    "prompts",
    "rows with prompt or prompt_token_ids, and output_len",
    signs=("prompt", "prompt_token_ids"),
    entry=_prompt,
    fields={**alike("prompt", "prompt_token_ids"), "output_len": OUTPUT_LEN},
    unread=("id", *OF_SAMPLING),
)
SHAREGPT = Format(
    "sharegpt",
    "conversations of human and gpt; the first exchange, or with --multi-turn all",
    signs=("conversations",),
    entry=_first_exchange,
    turns=_every_exchange,
    fields=alike("conversations"),
    unread=("id", "model", "source"),
)
