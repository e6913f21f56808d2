"""The installed strategies and engines: what each says of itself, or why it cannot be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from strategies.registry import discover
from workers import engines


@dataclass(frozen=True, slots=True)
class Plugin:
    """A strategy or an engine. source: the package that it comes from. error: why it cannot be
    loaded; None where all is well."""

    name: str
    summary: str
    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Plugins:
    """Every strategy that a layout can be made of, and every engine that can run it."""

    strategies: Sequence[Plugin]
    engines: Sequence[Plugin]


def installed() -> Plugins:
    """What is installed here."""
    return Plugins(
        strategies=[
            Plugin(one.key, one.summary, one.source, one.error) for one in discover().values()
        ],
        engines=[_engine(point) for point in sorted(entry_points(group=engines.GROUP))],
    )


def _engine(point: EntryPoint) -> Plugin:
    source = point.dist.name if point.dist else point.value
    try:
        summary = _first_paragraph(str(type(engines.create(point.name)).__doc__ or ""))
    except engines.EngineError as error:
        return Plugin(point.name, "", source, _reason(error))
    return Plugin(point.name, summary, source, None)


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())


def _reason(error: engines.EngineError) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause else str(error)
