"""Messages of a chat, alone and as OpenAI's batch API takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import UserError
from orchestrator.plan.datasets.rows import OF_SAMPLING, OUTPUT_LEN, Chat, Entry, Format, Row, alike


def _messages(row: Row) -> tuple[tuple[str, str], ...]:
    given = row.value("messages")
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise UserError(f"{row.where}: messages must be a list of objects with role and content")
    return tuple((_role(m.get("role"), row), _content(m.get("content"), row)) for m in given)


def _role(role: object, row: Row) -> str:
    if not isinstance(role, str):
        raise UserError(f"{row.where}: a message has no role; it is a text, such as user")
    return role


def _content(content: object, row: Row) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) and content else (None,)
    texts = [one.get("text") if isinstance(one, dict) else None for one in parts]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        raise UserError(
            f"{row.where}: the content of a message is no text; images, sounds and calls of tools "
            "are not read"
        )
    return "".join(known)


def _chat(row: Row) -> Entry:
    """The last reply says how long it is; what comes before it is the prompt."""
    messages, reply = _messages(row), None
    if messages[-1][0] == "assistant":
        messages, reply = messages[:-1], messages[-1][1]
    if not messages:
        raise UserError(f"{row.where}: there is no message before the reply")
    return Entry(row.where, Chat(messages), _length(row), reply)


def _turns(row: Row) -> Sequence[Entry]:
    """Each reply with the messages before it, and what the last message asks for if it is none."""
    messages, length = _messages(row), _length(row)
    found = [
        Entry(f"{row.where}, message {place + 1}", Chat(messages[:place]), length, text)
        for place, (role, text) in enumerate(messages)
        if role == "assistant" and place
    ]
    if messages[-1][0] != "assistant":
        found.append(Entry(row.where, Chat(messages), length))
    return found


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
    return Entry(row.where, Chat(_messages(asked)), _length(asked))


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
