"""Traces of services: lengths and times of arrival, no texts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from orchestrator.errors import UserError
from orchestrator.plan.datasets.rows import CannotRun, Drawn, Entry, Format, Row

BLOCK = 512  # tokens of a block of Mooncake's hash_ids


def _milliseconds(row: Row) -> float:
    return row.number("timestamp") / 1e3


def _seconds(row: Row) -> float:
    return row.number("timestamp")


def _date(row: Row) -> float:
    """Seconds since 1970, of a time with as many digits as there are."""
    at = row.fields.get("timestamp")  # Parquet and Arrow may hold a time
    if not isinstance(at, datetime):
        at = _read_date(row.text("timestamp").strip(), row.where)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _read_date(text: str, where: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f"{where}: '{text[:60]}' is not a time; write it as 2023-11-16 18:15:46.68"
        ) from error


def _request(time: Callable[[Row], float], row: Row) -> Entry:
    for name in ("timestamp", "input_len", "output_len"):
        if not row.has(name):
            raise UserError(f"{row.where}: {row.names[name]} is missing")
    at = time(row)
    try:
        inputs, outputs = row.whole("input_len"), row.whole("output_len")
        return Entry(row.where, Drawn(inputs, _blocks(row, inputs), BLOCK), outputs, arrival_s=at)
    except CannotRun as error:  # the others' times count from this row's, if it is the first
        return Entry(row.where, error, 1, arrival_s=at)


def _blocks(row: Row, inputs: int) -> tuple[int, ...]:
    ids = row.value("hash_ids") or []
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise UserError(f"{row.where}: hash_ids must be a list of whole numbers, 0 or more")
    most = -(-inputs // BLOCK)
    if len(ids) > most:  # other published traces have blocks of 16 tokens
        raise UserError(
            f"{row.where}: there are {len(ids)} hash_ids for {inputs} tokens, and with blocks of "
            f"{BLOCK} tokens it would be {most}; blocks of another size are not read, so take "
            "hash_ids out of the trace"
        )
    return tuple(ids)


def _fields(timestamp: str, inputs: str, outputs: str) -> dict[str, tuple[str, ...]]:
    return {"timestamp": (timestamp,), "input_len": (inputs,), "output_len": (outputs,)}


MOONCAKE = Format(
    "mooncake",
    "timestamp in ms, input_length, output_length, hash_ids",
    signs=("input_length",),
    entry=partial(_request, _milliseconds),
    fields={**_fields("timestamp", "input_length", "output_length"), "hash_ids": ("hash_ids",)},
)
AZURE = Format(
    "azure",
    "TIMESTAMP, ContextTokens, GeneratedTokens",
    signs=("ContextTokens",),
    entry=partial(_request, _date),
    fields=_fields("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
BURSTGPT = Format(
    "burstgpt",
    "Timestamp in s, Request tokens, Response tokens",
    signs=("Request tokens",),
    entry=partial(_request, _seconds),
    fields=_fields("Timestamp", "Request tokens", "Response tokens"),
    unread=("Model", "Session ID", "Elapsed time", "Total tokens", "Log Type"),
)
