"""What all formats share: a row of a file, the request that it asks for, and what a format is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import UserError

# What the datasets of this project, of vLLM, of AIPerf and of OpenAI call the length of a reply.
OUTPUT_LEN = ("output_len", "output_tokens", "output_length", "max_tokens", "max_completion_tokens")
# Fields of a request to OpenAI, or to vLLM, that do not change how much work it is. Sampling is
# asked for the whole experiment, by --temperature and --seed.
OF_SAMPLING = (
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("stream", "stream_options", "user", "metadata", "store", "service_tier"),
)


class CannotRun(UserError):
    """A row that was understood, and asks for what no engine can run."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset; `where` names its file and line. typed: whether its values have types;
    those of CSV are all text. A value that is null counts as one that is not there. names: field ->
    what it is called in the file."""

    where: str
    fields: Mapping[str, Any]
    typed: bool = True
    names: Mapping[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether it has a value of that name."""
        value = self.fields.get(name)
        return value is not None and (self.typed or value != "")

    def text(self, name: str) -> str:
        """A text, which may be empty. Raises UserError for anything else."""
        value = self.fields.get(name, "")
        if not isinstance(value, str):
            raise UserError(
                f"{self.where}: {self.names.get(name, name)} is {type(value).__name__}; it must be "
                "text"
            )
        return value

    def value(self, name: str) -> Any:
        """A value that is no text. A cell of CSV holds it as JSON, and is itself where it holds
        none."""
        found = self.fields.get(name)
        if self.typed or not isinstance(found, str):
            return found
        try:
            return json.loads(found)
        except (ValueError, RecursionError):
            return found or None

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number. Raises UserError where it is none, CannotRun where it is below
        `least`."""
        value = self.number(name)
        if value != int(value):
            raise self._no_number(name, least)
        if value < least:
            raise CannotRun(str(self._no_number(name, least)))
        return int(value)

    def number(self, name: str) -> float:
        """A finite number. Raises UserError for anything else."""
        value: Any = self.fields.get(name)
        try:
            if self.typed != isinstance(value, str) and not isinstance(value, bool):
                number = value if isinstance(value, int) else float(value)
                if math.isfinite(number):
                    return number
        except (TypeError, ValueError, OverflowError):
            pass
        raise self._no_number(name)

    def _no_number(self, name: str, least: int | None = None) -> UserError:
        wanted = "a number" if least is None else f"a whole number, {least} or more"
        found = repr(self.fields.get(name))
        shown = self.names.get(name, name)
        return UserError(f"{self.where}: {shown} is {found[:60]}; it must be {wanted}")


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, each with its role and its text, that a chat template makes a prompt of."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Said:
    """Texts that were said one after another, whose tokens follow each other. So what was said
    before is, token by token, the beginning of what is said after."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt of `length` random tokens. blocks: numbers of blocks of `block_size` tokens that it
    begins with; equal numbers are equal tokens."""

    length: int
    blocks: tuple[int, ...] = ()
    block_size: int = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """What one row, or one turn of it, asks for.

    prompt: a text, token ids, texts in a row, messages, random tokens, or why it cannot run, where
    its place among turns or its time counts all the same. output_len: tokens; None
    where `reply`, or else a default, says it. arrival_s: of a trace, in seconds since any moment.
    """

    where: str
    prompt: str | tuple[int, ...] | Said | Chat | Drawn | CannotRun
    output_len: int | None = None
    reply: str | None = None
    arrival_s: float | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A format of datasets: the fields of its rows, and what a row asks for.

    signs: fields by which it is known; one of them is enough. fields: name -> the names that it may
    have in a file. unread: fields that may be there and change nothing. entry: what a row asks for,
    its fields by name; None for a row that asks for nothing. It raises UserError for a row that is
    no row of this format, and CannotRun for one that cannot run. turns: of a format that has
    conversations, what each turn of a row asks for, in order; a prompt has all that was said before
    it. It raises what `entry` does.
    """

    name: str
    summary: str
    signs: tuple[str, ...]
    entry: Callable[[Row], Entry | None]
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    turns: Callable[[Row], Sequence[Entry]] | None = None

    def knows(self, row: Row) -> bool:
        """Whether a row looks like one of this format."""
        return any(sign in row.fields for sign in self.signs)

    def named(self, row: Row, columns: Mapping[str, str]) -> Row:
        """The row with its fields under their names here. columns: field -> the column of the file
        that was named for it; then one of an unknown name is not read, nor another name of such a
        field. Raises UserError for an unknown field, and for two names of a field with values that
        differ."""
        known = {one: name for name, others in self.fields.items() for one in (name, *others)}
        chosen = {known[one]: one for one in columns if one in known}
        found: dict[str, Any] = {}
        by: dict[str, str] = {}
        for column in sorted(row.fields, key=row.has, reverse=True):  # a blank cell says nothing
            name, value = known.get(column), row.fields[column]
            if value is None:
                continue
            if name is None and not columns and column not in self.unread:
                raise self._unknown(row.where, column)
            if name is None or chosen.get(name, column) != column:
                continue
            if name in found and not row.has(column):
                continue
            if name in found and found[name] != value:
                raise UserError(f"{row.where}: {by[name]} and {column} differ; give one of them")
            found[name], by[name] = value, columns.get(column, column)
        usual = {name: others[0] for name, others in self._names()}
        return replace(row, fields=found, names={**usual, **by})

    def _names(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Each field, and what it may be called; the usual name comes first."""
        for name, others in self.fields.items():
            yield name, others or (name,)

    def _unknown(self, where: str, column: str) -> UserError:
        names = ", ".join(
            aliases[0] + (f" (or {', '.join(aliases[1:])})" if aliases[1:] else "")
            for _, aliases in self._names()
        )
        way_out = (
            "--dataset-columns names the columns to be read, then others are not"
            if self.signs
            else "What it asks for is not served; take it out"
        )
        return UserError(
            f"{where}: there is no field '{column[:60]}' in the format {self.name}; it has "
            f"{names}. {way_out}"
        )


def alike(*names: str) -> dict[str, tuple[str, ...]]:
    """Fields that have one name each."""
    return {name: (name,) for name in names}
