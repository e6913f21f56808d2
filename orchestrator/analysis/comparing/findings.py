"""Everything that results say when they are looked at: comparison, statistics, verdicts, curves,
ablations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.comparing.ablation import EFFECTS, Effect, effects
from orchestrator.analysis.comparing.compare import COMPARED, Comparison, Load, compare
from orchestrator.analysis.comparing.curves import CURVES, Curve, curves
from orchestrator.analysis.comparing.spreads import (
    STATISTICS,
    UNSETTLED,
    Statistic,
    Unsettled,
    statistics,
    unsettled,
)
from orchestrator.analysis.comparing.verdicts import VERDICTS, Verdict, verdicts
from orchestrator.analysis.load import Results, load
from workers.rows import grouped


@dataclass(frozen=True, slots=True)
class Findings:
    """What the results of one experiment or several say, in typed rows."""

    comparison: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    curves: Sequence[Curve]
    ablations: Sequence[Effect]
    statistics: Sequence[Statistic]
    unsettled: Sequence[Unsettled]

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`: the rows of each table, by its name."""
        return {
            "comparison": COMPARED.data(self.comparison),
            "verdicts": VERDICTS.data(self.verdicts),
            "curves": CURVES.data(self.curves),
            "ablations": EFFECTS.data(self.ablations),
            "statistics": STATISTICS.data(self.statistics),
            "unsettled": UNSETTLED.data(self.unsettled),
        }

    def sentences(self, objective: str) -> Mapping[Load, list[str]]:
        """The verdicts for one objective in words, by what layouts are compared within."""
        mine = [one for one in self.verdicts if one.objective == objective]
        groups = grouped(mine, lambda one: one.load)
        return {load: [one.sentence for one in found] for load, found in groups.items()}


def of_folders(
    paths: Iterable[Path], levels: Mapping[str, float] | None = None, until_ci: float | None = None
) -> Findings:
    """What the results at or below `paths` say.

    levels: service levels in ms that goodput is worked out under; None or empty: those of the runs.
    until_ci: how certain each mean should be; None: as was asked for when the results were made.
    Raises UserError where there are no results, or those of another schema version.
    """
    return of_results(load(paths, levels), until_ci)


def of_results(results: Sequence[Results], until_ci: float | None = None) -> Findings:
    """What results say; see `of_folders`."""
    comparison = [cell for one in results for cell in compare(one.runs)]
    spreads = [statistics(one.runs) for one in results]
    asked = [until_ci or one.asked.get("until_ci") for one in results]
    return Findings(
        comparison=comparison,
        verdicts=[verdict for one in results for verdict in verdicts(one.runs)],
        curves=curves(comparison),
        ablations=[effect for one in results for effect in effects(one.runs)],
        statistics=[statistic for mine in spreads for statistic in mine],
        unsettled=[
            wide
            for mine, until in zip(spreads, asked, strict=True)
            for wide in unsettled(mine, until)
        ],
    )
