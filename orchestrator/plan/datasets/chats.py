"""Messages of a chat, alone and as OpenAI's batch API takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.errors import UserError
from orchestrator.plan.datasets.rows import (
    OF_SAMPLING,
    OUTPUT_LEN,
    CannotRun,
    Chat,
    Entry,
    Format,
    Row,
    alike,
)

Messages = Sequence[tuple[str, str | CannotRun]]
CALLS = ("tool_calls", "function_call")


def _messages(row: Row) -> Messages:
    """Each with its role and its text, or why it has none that can be read."""
    given = row.value("messages")
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise UserError(f"{row.where}: messages must be a list of objects with role and content")
    return [(_role(one.get("role"), row), _content(one, row)) for one in given]


def _role(role: object, row: Row) -> str:
    if not isinstance(role, str):
        raise UserError(f"{row.where}: a message has no role; it is a text, such as user")
    return role


def _content(message: Mapping[str, Any], row: Row) -> str | CannotRun:
    """The text of a message, which may come in parts."""
    content = message.get("content")
    parts = [{"text": content}] if isinstance(content, str | None) else content
    if not isinstance(parts, list) or not all(isinstance(one, dict) for one in parts):
        raise UserError(f"{row.where}: the content of a message is no text and no list of parts")
    texts = [one.get("text") for one in parts if str(one.get("type") or "text").endswith("text")]
    known = [text for text in texts if isinstance(text, str)]
    if not parts or len(known) < len(parts) or any(message.get(one) for one in CALLS):
        return CannotRun(
            f"{row.where}: the content of a message is no text; images, sounds and calls of tools "
            "are not read"
        )
    return "".join(known)


def _prompt(messages: Messages) -> Chat | CannotRun:
    texts = tuple((role, text) for role, text in messages if isinstance(text, str))
    wrong = next((content for _, content in messages if isinstance(content, CannotRun)), None)
    return wrong or Chat(texts)


def _asked(where: str, messages: Messages, length: int | None) -> Entry | None:
    """What the last message asks for: a reply says how long it is, and what comes before it is the
    prompt. None where there is nothing before it."""
    role, reply = messages[-1]
    if role != "assistant":
        return Entry(where, _prompt(messages), length)
    if len(messages) == 1:
        return None
    if isinstance(reply, CannotRun):
        return Entry(where, reply, length)
    return Entry(where, _prompt(messages[:-1]), length, reply)


def _chat(row: Row) -> Entry | None:
    return _asked(row.where, _messages(row), _length(row))


def _turns(row: Row) -> Sequence[Entry]:
    """Each reply with the messages before it, and what the last message asks for if it is none."""
    messages, length = _messages(row), _length(row)
    last = len(messages)
    found = [
        _asked(
            f"{row.where}, message {end}" if role == "assistant" else row.where,
            messages[:end],
            length,
        )
        for end, (role, _) in enumerate(messages, start=1)
        if role == "assistant" or end == last
    ]
    return [entry for entry in found if entry]


def _length(row: Row) -> int | None:
    return row.whole("output_len", least=1) if row.has("output_len") else None


def _batch(row: Row) -> Entry:
    body = row.value("body")
    if not isinstance(body, dict):
        raise UserError(f"{row.where}: expected 'body', the object of one request")
    asked = BODY.named(replace(row, fields=body, typed=True), {})
    if ("prompt" in asked.fields) == ("messages" in asked.fields):
        raise UserError(f"{row.where}: expected either 'messages' or 'prompt' in body")
    if "prompt" in asked.fields:
        return Entry(row.where, asked.text("prompt"), _length(asked))
    return Entry(row.where, _prompt(_messages(asked)), _length(asked))


CHAT = Format(
    "chat",
    "messages with role and content, through the chat template",
    signs=("messages",),
    entry=_chat,
    turns=_turns,
    fields={**alike("messages"), "output_len": OUTPUT_LEN},
    unread=("id", *OF_SAMPLING),
)
BATCH = Format(
    "openai-batch",
    "requests as OpenAI's batch API takes them",
    signs=("body",),
    entry=_batch,
    fields=alike("body"),
    unread=("custom_id", "method", "url"),
)
BODY = Format(
    "openai-batch (body)",
    "one request of it",
    signs=(),
    entry=_batch,
    fields={**alike("messages", "prompt"), "output_len": OUTPUT_LEN},
    unread=OF_SAMPLING,
)
