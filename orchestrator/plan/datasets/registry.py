"""The formats that are read: those of this project and, of the entry-point group
`orchestrator.datasets`, those of other packages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.plan.datasets import chats, prompts, traces
from orchestrator.plan.datasets.files import rows
from orchestrator.plan.datasets.rows import CannotRun, Entry, Format, Row

GROUP = "orchestrator.datasets"
AUTO = "auto"
BUILT_IN = (
    prompts.PROMPTS,
    prompts.SHAREGPT,
    chats.CHAT,
    chats.BATCH,
    traces.MOONCAKE,
    traces.AZURE,
    traces.BURSTGPT,
)


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset, and how it is to be read. format: "auto", or the name of one. columns: field ->
    the column that holds it; then columns of other names are not read. split: of a folder; None:
    the only one. multi_turn: whole conversations, not their first exchange."""

    path: Path
    format: str = AUTO
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    multi_turn: bool = False


def formats() -> dict[str, Format]:
    """Every format by name. Raises UserError for a plug-in that cannot be loaded, or has the name
    of another format."""
    found: dict[str, Format] = {one.name: one for one in BUILT_IN}
    for point, form in plugins():
        if isinstance(form, UserError):
            raise form
        found[point.name] = form
    return found


def plugins() -> Iterator[tuple[EntryPoint, Format | UserError]]:
    """The entry points of other packages, by name, each with its format, or with the error that
    says why that cannot be used."""
    taken = {one.name for one in BUILT_IN}
    for point in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        try:
            if point.name in taken:
                raise UserError(f"two formats of datasets are called '{point.name}'; uninstall one")
            yield point, _load(point)
        except UserError as error:
            yield point, error
        taken.add(point.name)


def _load(point: EntryPoint) -> Format:
    try:
        loaded = point.load()
    except Exception as error:  # a plug-in may raise anything
        raise UserError(
            f"the format of datasets '{point.name}' ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, Format):
        raise UserError(
            f"the format of datasets '{point.name}' ({point.value}) is {type(loaded).__name__}; it "
            "must be a Format"
        )
    return loaded


def described() -> str:
    """The formats that are read, in words."""
    return "; ".join(f"{name} ({one.summary})" for name, one in formats().items())


def read(source: Source) -> Iterator[Sequence[Entry] | CannotRun]:
    """What each row of a dataset asks for, in order: the turns of a conversation, else one entry;
    none where it asks for nothing; for a row that cannot run, the reason.

    Raises UserError for what cannot be read, with file and line.
    """
    found = (_renamed(row, source) for row in rows(source.path, source.split))
    first = next(found, None)
    if first is None:
        return
    form = _format_of(source, first)
    turns_of = _turns_of(form, source)
    for row in itertools.chain([first], found):
        try:
            turns = turns_of(form.named(row, source.columns))
        except CannotRun as error:
            yield error
            continue
        yield turns


def _turns_of(form: Format, source: Source) -> Callable[[Row], Sequence[Entry]]:
    if source.multi_turn and form.turns is None:
        able = ", ".join(name for name, one in formats().items() if one.turns)
        raise UserError(
            f"--multi-turn serves conversations, and the format {form.name} of {source.path} has "
            f"none ({able} have); leave it out"
        )
    if source.multi_turn and form.turns:
        return form.turns

    def alone(row: Row) -> Sequence[Entry]:
        entry = form.entry(row)
        return () if entry is None else (entry,)

    return alone


def _renamed(row: Row, source: Source) -> Row:
    """The row with the columns that were named under the names of their fields."""
    if not source.columns:
        return row
    for column in source.columns.values():
        if column not in row.fields:
            raise UserError(
                f"{row.where}: there is no column '{column}'; there are {_some(row.fields)}"
            )
    taken = set(source.columns.values())
    left = {name: value for name, value in row.fields.items() if name not in taken}
    named = {name: row.fields[column] for name, column in source.columns.items()}
    return replace(row, fields={**left, **named})


def _format_of(source: Source, first: Row) -> Format:
    known = formats()
    if source.format != AUTO:
        if source.format not in known:
            raise UserError(
                f"there is no format of datasets '{source.format}'; use {AUTO} or one of "
                f"{', '.join(known)}"
            )
        return _with_columns(known[source.format], source)
    _check_columns(source, known.values())
    found = [one for one in known.values() if one.knows(first)]
    if not found:
        raise UserError(
            f"{first.where}: no format has {_fields_in_words(first)}; those that are read: "
            f"{described()}. --dataset-columns prompt=COLUMN names the columns of other tables"
        )
    fitting = (one for one in found if not _missing(one, source))
    return _with_columns(next(fitting, found[0]), source)


def _check_columns(source: Source, known: Collection[Format]) -> None:
    """Raise UserError where a column was named for a field that no format has."""
    taken: set[str] = set().union(*map(_names_of, known))
    strange = [name for name in source.columns if name not in taken]
    if strange:
        names = dict.fromkeys(itertools.chain.from_iterable(one.fields for one in known))
        raise UserError(
            f"--dataset-columns names '{strange[0][:60]}', which no format has; fields are "
            f"{', '.join(names)}"
        )


def _with_columns(form: Format, source: Source) -> Format:
    """The format, if it has the fields whose columns were named."""
    if missing := _missing(form, source):
        raise UserError(
            f"--dataset-columns names '{missing[0]}', which the format {form.name} does not have; "
            f"it has {', '.join(form.fields)}"
        )
    return form


def _missing(form: Format, source: Source) -> Sequence[str]:
    """The fields whose columns were named, and which the format does not have."""
    known = _names_of(form)
    return [name for name in source.columns if name not in known]


def _names_of(form: Format) -> set[str]:
    """Every name that a field of the format may have."""
    return {name for one, others in form.fields.items() for name in (one, *others)}


def _fields_in_words(row: Row) -> str:
    return f"the fields {_some(row.fields)}" if row.fields else "rows without a field"


def _some(fields: Mapping[str, object]) -> str:
    shown = [str(name)[:40] for name in itertools.islice(fields, 12)]
    return ", ".join(shown) or "none"
