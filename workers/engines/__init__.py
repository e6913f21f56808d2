"""Engines: what executes a placement. Found by name through the entry-point group
`orchestrator.engines`.

An adapter's module must import without torch, so that the driver can ask `supports` before it
starts anything.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, Protocol

from workers.messages import Built, EnginePlan, RankReport, Work

if TYPE_CHECKING:
    from workers.rank import RankContext

GROUP = "orchestrator.engines"
CALIBRATION = EntryPoint(
    "calibration", "workers.engines.calibration:CalibrationEngine", GROUP
)  # serves nothing, so is not listed


class EngineError(ValueError):
    """An engine that is not there or cannot do what was asked; the message says which and what to
    do."""


class Engine(Protocol):
    """One worker's share of a deployment. Made with no arguments; lives until `close`.

    processes: "per_rank", one process a rank; "single", one process that is given every device of
    the placement.
    """

    processes: Literal["per_rank", "single"]

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why this engine cannot run the plan (a clause: 'it does not do pipeline
        stages')."""
        ...

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Load weights and get ready to serve. Raises torch.OutOfMemoryError where it does not
        fit."""
        ...

    def run(self, work: Work) -> RankReport:
        """Serve `work` (the whole layout's; a rank takes its replica's share) and report."""
        ...

    def close(self) -> None:
        """Free what `build` took."""
        ...


def names() -> list[str]:
    return sorted(point.name for point in entry_points(group=GROUP))


def create(name: str) -> Engine:
    """A new engine by name. Raises EngineError for an unknown one, one of several packages, or one
    that cannot be imported."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    bringing = sorted(
        {
            point.dist.name if point.dist else point.value
            for point in entry_points(group=GROUP, name=name)
        }
    )
    if len(bringing) > 1:
        raise EngineError(
            f"{' and '.join(bringing)} both bring an engine '{name}'; uninstall one of them"
        )
    if name not in points and name != CALIBRATION.name:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise EngineError(
            f"there is no engine '{name}'{hint} Installed: {', '.join(sorted(points)) or 'none'}"
        )
    try:
        engine: Engine = points.get(name, CALIBRATION).load()()
    except Exception as error:  # a plug-in may raise anything
        raise EngineError(
            f"the engine '{name}' could not be loaded: {type(error).__name__}: {error}"
        ) from error
    return engine
