"""Where a command prints: stdout and stderr, as tables or as one JSON document."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from orchestrator.store.names import shown

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 160  # columns of a table that goes to a file or a pipe


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
        """For progress and paths: stdout, or stderr where stdout is for a JSON document."""
        return _console(stderr=self.as_json)


def say(text: object, err: bool = False) -> None:
    """Print a line, as it can be shown."""
    click.echo(shown(text), err=err)


def console_of(**options: Any) -> Console:
    """A console that prints names as they are: no text is markup or an emoji's name, and control
    characters are written out. options: of rich's Console."""
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(shown(text, keep="\n"), style)

    return Plain(markup=False, emoji=False, **options)


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
    if isinstance(data, Mapping):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if dataclasses.is_dataclass(data):
        fields = dataclasses.fields(data)
        return {field.name: plain(getattr(data, field.name)) for field in fields}
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _console(stderr: bool) -> Console:
    """Plain and wide where the stream is not a terminal. A character that its encoding lacks is
    printed as a question mark."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    console = console_of(stderr=stderr)
    return console if console.is_terminal else console_of(stderr=stderr, width=PLAIN_WIDTH)
