"""Where a command prints: stdout and stderr, as tables or as one JSON document."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import UserError
from orchestrator.store.names import broken, shown, width_of_stderr

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import TextType

UNLIMITED = 10_000  # columns
SVG_WIDTH = 110
MONOSPACE = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
PROSE = 30  # columns: a text that is wider may be broken between its words


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command prints: tables for people, or one JSON document."""

    as_json: bool = False

    def show(self, data: Callable[[], object], draw: Callable[[Console], None]) -> None:
        """Print `data` as JSON, or draw it."""
        if self.as_json:
            self.document(data())
        else:
            draw(self.console())

    def document(self, data: object) -> None:
        """Print one JSON document."""
        click.echo(json_text(data))

    def console(self) -> Console:
        """stdout for tables."""
        return _console(stderr=False)

    def notes(self) -> Console:
        """For paths: stdout, or stderr where stdout is for a JSON document."""
        return _console(stderr=self.as_json)

    def progress(self) -> Console:
        """stderr, so that a pipe gets what was found and nothing else."""
        return _console(stderr=True)


def say(text: object, err: bool = False) -> None:
    """Print a line, as it can be shown; on stderr, in a terminal, broken between its words."""
    click.echo(broken(shown(text), width_of_stderr() if err else None), err=err)


def console_of(**options: Any) -> Console:
    """A console that prints names as they are: no text is markup or an emoji's name, and control
    characters are written out. Nothing of a table is cut: see `fitted`. Where nobody looks, no
    sentence is broken into lines. options: of rich's Console."""
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table

    class Plain(Console):
        def print(self, *objects: Any, **how: Any) -> None:
            if len(objects) == 1 and isinstance(objects[0], Table):
                title, table = _apart(objects[0])
                if title:
                    self.print(title, style="table.title")
                for part in fitted(table, self):
                    self._print_whole(part, how)
            else:
                super().print(*objects, **{"soft_wrap": not self.is_terminal} | how)

        def _print_whole(self, table: Table, how: dict[str, Any]) -> None:
            before, self.width = self.width, max(self.width, width_of(table, self))
            try:
                super().print(table, **how)
            finally:
                self.width = before

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(shown(text, keep="\n"), style)

    return Plain(markup=False, emoji=False, **options)


def _apart(table: Table) -> tuple[TextType | None, Table]:
    """A table's title and the table without it: as a part of it, rich breaks it at its width."""
    untitled = copy.copy(table)
    untitled.title = None
    return table.title, untitled


def export_svg(
    draw: Callable[[Console], None], path: Path, title: str = "orchestrator compare"
) -> None:
    """What `draw` prints, as a picture of a terminal. Raises UserError where it cannot be
    written."""
    console = console_of(
        record=True,
        width=SVG_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    draw(console)
    try:
        path.write_text(_without_web_fonts(console.export_svg(title=title)), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the picture cannot be written to {path}: {error.strerror}; give another --svg"
        ) from error


def _without_web_fonts(svg: str) -> str:
    """Rich names a font that would have to be fetched; where it is not, columns no longer meet."""
    own = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return own.replace("Fira Code, monospace", MONOSPACE).replace("arial", "sans-serif")


def width_of(table: Table, console: Console) -> int:
    """Columns of a terminal that `table` takes if no text of it is broken, prose aside."""
    return _edges(table) + sum(_least(table, column, console) for column in table.columns)


def fitted(table: Table, console: Console) -> Iterator[Table]:
    """`table` if it is no wider than the console, else its columns in several tables below each
    other. Each of these begins with the columns that tell the rows apart. Only prose is broken
    into lines; a column too wide for the console keeps its width."""
    for column in table.columns:
        column.no_wrap = column.no_wrap or not _is_prose(column)
    if width_of(table, console) <= console.width:
        yield table
        return
    keys = _num_keys(table)
    start = keys
    while start < len(table.columns):
        end = start + 1
        while end < len(table.columns) and _fits(table, keys, start, end + 1, console):
            end += 1
        yield _part(table, keys, start, end)
        start = end


def _fits(table: Table, keys: int, start: int, end: int, console: Console) -> bool:
    return width_of(_part(table, keys, start, end), console) <= console.width


def _part(table: Table, keys: int, start: int, end: int) -> Table:
    """Its first `keys` columns and those from `start` to `end`."""
    part = copy.copy(table)
    part.columns = [
        dataclasses.replace(column, _index=index)
        for index, column in enumerate([*table.columns[:keys], *table.columns[start:end]])
    ]
    part.title = table.title if start == keys else None
    return part


def _num_keys(table: Table) -> int:
    """How many columns, from the left, are needed to tell the rows apart; at most four. An empty
    cell does not say which row it is in, and neither does a mark."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    rows = list(zip(*columns, strict=True))
    apart = (
        count
        for count in (1, 2, 3, 4)
        if len({row[:count] for row in rows}) == len(rows)
        and all(any(map(str.isalnum, "".join(row[:count]))) for row in rows)
    )
    return min(next(apart, 1), len(table.columns) - 1) or 1


def _is_prose(column: Column) -> bool:
    texts = [str(cell) for cell in column.cells]
    return column.justify == "left" and any(len(one) > PROSE and " " in one for one in texts)


def _least(table: Table, column: Column, console: Console) -> int:
    """The columns of a terminal that a column needs: for prose its longest word, or PROSE."""
    from rich.measure import Measurement

    wide = console.options.update(width=UNLIMITED)
    found = [Measurement.get(console, wide, one) for one in (column.header, *column.cells)]
    whole, longest = max(one.maximum for one in found), max(one.minimum for one in found)
    _, right, _, left = table.padding
    return (whole if column.no_wrap else max(longest, PROSE)) + left + right


def _edges(table: Table) -> int:
    """What stands between and around the columns, less the padding that the edges lack."""
    _, right, _, left = table.padding
    lines = len(table.columns) - 1 + 2 * table.show_edge
    return lines * (table.box is not None) - (left + right) * (not table.pad_edge)


def json_text(data: object) -> str:
    """One document for `--json`, that every parser reads. `data`: see `plain`."""
    return json.dumps(plain(data), indent=2, allow_nan=False)


def compact_json(data: object) -> str:
    """The same without white space, for files."""
    return json.dumps(plain(data), separators=(",", ":"), allow_nan=False)


def inline_json(data: object) -> str:
    """The same for a script element of a page: "<" is escaped, so that no text ends the element."""
    return compact_json(data).replace("<", "\\u003c")


def plain(data: object) -> object:
    """`data`, made of dataclasses, mappings, sequences and scalars, in a form that `json.dumps`
    takes: NaN and infinities become null, as JSON does not have them."""
    if data is None or isinstance(data, (str, int)):  # most of what a page has, beside floats
        return data
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if dataclasses.is_dataclass(data):
        fields = dataclasses.fields(data)
        return {field.name: plain(getattr(data, field.name)) for field in fields}
    return data


def _console(stderr: bool) -> Console:
    """As wide as COLUMNS says, else as the terminal; without a limit where there is neither. A
    character that the encoding of the stream lacks is printed as a question mark."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    console = console_of(stderr=stderr)
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return console
    return console_of(stderr=stderr, width=UNLIMITED)
