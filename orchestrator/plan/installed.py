"""The installed strategies, engines and formats of datasets: what each says of itself, or why it
cannot be loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint

from orchestrator.errors import UserError
from orchestrator.plan.datasets import registry
from orchestrator.plan.datasets.rows import Format
from strategies.entries import entry_points
from strategies.registry import discover
from workers import engines
from workers.versions import PROJECT


@dataclass(frozen=True, slots=True)
class Plugin:
    """A strategy, an engine or a format. source: the package that it comes from. error: why it
    cannot be loaded; None where all is well."""

    name: str
    summary: str
    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Plugins:
    """Every strategy that a layout can be made of, every engine that can run it, and every format
    of datasets that can be served."""

    strategies: Sequence[Plugin]
    engines: Sequence[Plugin]
    datasets: Sequence[Plugin]


def installed() -> Plugins:
    """What is installed here."""
    return Plugins(
        strategies=[
            Plugin(one.key, one.summary, one.source, one.error) for one in discover().values()
        ],
        engines=[_engine(point) for point in sorted(entry_points(group=engines.GROUP))],
        datasets=[
            *(Plugin(one.name, one.summary, PROJECT, None) for one in registry.BUILT_IN),
            *(_format(*found) for found in registry.plugins()),
        ],
    )


def _format(point: EntryPoint, form: Format | UserError) -> Plugin:
    if isinstance(form, UserError):
        return Plugin(point.name, "", _source(point), _reason(form))
    return Plugin(point.name, form.summary, _source(point), None)


def _source(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _engine(point: EntryPoint) -> Plugin:
    source = _source(point)
    try:
        summary = _first_paragraph(str(type(engines.create(point.name)).__doc__ or ""))
    except engines.EngineError as error:
        return Plugin(point.name, "", source, _reason(error))
    return Plugin(point.name, summary, source, None)


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())


def _reason(error: Exception) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause else str(error)
