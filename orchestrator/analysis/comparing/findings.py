"""Everything that results say when they are looked at: comparison, statistics, verdicts, curves,
ablations, techniques, drifts, rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pyarrow as pa

from orchestrator.analysis.comparing.ablation import (
    EFFECTS,
    TECHNIQUE_EFFECTS,
    Effect,
    TechniqueEffect,
    effects,
    technique_effects,
)
from orchestrator.analysis.comparing.best import BEST, Best, best
from orchestrator.analysis.comparing.compare import COMPARED, Comparison, compare
from orchestrator.analysis.comparing.curves import CURVES, Curve, curves
from orchestrator.analysis.comparing.drift import DRIFTS, Drift, drifts
from orchestrator.analysis.comparing.gaps import (
    IMPORTED,
    MISSING,
    Imported,
    Missing,
    imported,
    missing,
)
from orchestrator.analysis.comparing.metrics import OBJECTIVES
from orchestrator.analysis.comparing.rounds import Load
from orchestrator.analysis.comparing.spreads import (
    STATISTICS,
    UNSETTLED,
    Statistic,
    Unsettled,
    statistics,
    unsettled,
)
from orchestrator.analysis.comparing.verdicts import VERDICTS, Verdict, rulings
from orchestrator.analysis.goodput import RATES, FoundRate
from orchestrator.analysis.kernels import TOP_KERNELS, TopKernel, top_kernels
from orchestrator.analysis.load import Results, found_rates, load
from orchestrator.analysis.load import tables as kept_tables
from orchestrator.experiment import DIFFERENCE
from workers.rows import grouped

NONE_ENDED = "no run of it has ended; the same `orchestrator submit` again goes on"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the results of one experiment or several say, in typed rows."""

    comparison: Sequence[Comparison]
    best: Sequence[Best]
    verdicts: Sequence[Verdict]
    curves: Sequence[Curve]
    ablations: Sequence[Effect]
    statistics: Sequence[Statistic]
    unsettled: Sequence[Unsettled]
    drifts: Sequence[Drift]
    missing: Sequence[Missing] = ()
    imported: Sequence[Imported] = ()
    rates: Sequence[FoundRate] = ()
    techniques: Sequence[TechniqueEffect] = ()
    kernels: Sequence[TopKernel] = ()

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`: the rows of each table, by its name."""
        return {
            "comparison": COMPARED.data(self.comparison),
            "best": BEST.data(self.best),
            "verdicts": VERDICTS.data(self.verdicts),
            "curves": CURVES.data(self.curves),
            "ablations": EFFECTS.data(self.ablations),
            "statistics": STATISTICS.data(self.statistics),
            "unsettled": UNSETTLED.data(self.unsettled),
            "drifts": DRIFTS.data(self.drifts),
            "missing": MISSING.data(self.missing),
            "imported": IMPORTED.data(self.imported),
            "rates": RATES.data(self.rates),
            "techniques": TECHNIQUE_EFFECTS.data(self.techniques),
            "kernels": TOP_KERNELS.data(self.kernels),
        }

    def sentences(self, objective: str) -> Mapping[Load, list[str]]:
        """The verdicts for one objective in words, by what layouts are compared within: the leader
        against each other layout, or why there is none."""
        metrics = grouped(
            (one for one in self.best if one.objective == objective), lambda one: one.load
        )
        pairs = grouped(self.verdicts, lambda one: (one.load, one.metric))
        return {
            load: [line for one in mine for line in _said(one, pairs.get((load, one.metric), ()))]
            for load, mine in metrics.items()
        }

    def lacking(self, objective: str) -> str:
        """That no layout can be judged by an objective, and what to do; empty where one can."""
        if not self.comparison:
            return f"There is nothing to compare: {NONE_ENDED}."
        if not self.best or any(one.objective == objective for one in self.best):
            return ""
        advice = ": give service levels, the same for all runs, with --goodput"
        return f"No layout has a figure for {objective}{advice * (objective == 'goodput')}."


def of_folders(
    paths: Iterable[Path],
    levels: Mapping[str, float] | None = None,
    until_ci: float | None = None,
    difference: float | None = None,
    objective: str = OBJECTIVES[0],
) -> Findings:
    """What the results at or below `paths` say.

    levels: service levels in ms that goodput is worked out under; None or empty: those of the runs.
    until_ci: how certain each mean should be. difference: the smallest that matters, as a share. Of
    both None: as was asked for when the results were made. objective: what cells are ordered by.
    Raises UserError where there are no results, or those of another schema version.
    """
    found = list(paths)
    said = of_results(load(found, levels), until_ci, difference, objective)
    return replace(said, rates=found_rates(found))


def of_results(
    results: Sequence[Results],
    until_ci: float | None = None,
    difference: float | None = None,
    objective: str = OBJECTIVES[0],
) -> Findings:
    """What results say, without what searches of rates found; see `of_folders`."""
    found = [_of_experiment(one, until_ci, difference, objective) for one in results]
    return Findings(
        **{
            field.name: [row for one in found for row in getattr(one, field.name)]
            for field in fields(Findings)
        }
    )


def tables(folder: Path) -> dict[str, pa.Table]:
    """Every table of the experiments at or below `folder`. The comparison and the effects of
    techniques are worked out where one has none, as after a signal. See `load.tables`."""
    whole = kept_tables(folder)
    if _experiments(whole.get("summary")) - _experiments(whole.get("comparison")):
        found = of_folders([folder])
        whole["comparison"] = COMPARED.make(found.comparison)
        if found.techniques:
            whole["ablation"] = TECHNIQUE_EFFECTS.make(found.techniques)
    return whole


def _experiments(table: pa.Table | None) -> set[str]:
    return set() if table is None else set(table["experiment"].to_pylist())


def _of_experiment(
    one: Results, until_ci: float | None, difference: float | None, objective: str
) -> Findings:
    matters = difference or one.asked.get("difference") or DIFFERENCE
    shown = rulings(one.runs, matters)
    comparison = compare(one.runs, shown, objective)
    return Findings(
        comparison=comparison,
        best=best(shown),
        verdicts=[verdict for ruling in shown for verdict in ruling.verdicts],
        curves=curves(comparison),
        ablations=effects(one.runs),
        techniques=technique_effects(one.runs),
        statistics=statistics(one.runs),
        unsettled=unsettled(one.runs, until_ci or one.asked.get("until_ci")),
        drifts=drifts(one.runs, matters),
        missing=missing(one.folder, one.manifest, one.runs),
        imported=imported(one),
        kernels=top_kernels(one.kernels, (run.cell for run in one.runs)),
    )


def _said(found: Best, verdicts: Iterable[Verdict]) -> Iterator[str]:
    """What is said of one metric under one load. verdicts: of every pair."""
    if found.leader is None:
        yield found.reason or ""
        return
    yield from (one.sentence for one in verdicts if found.leader in (one.better, one.other))
