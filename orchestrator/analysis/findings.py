"""Everything that results say when they are looked at again: comparison and statistics, verdicts,
curves, ablations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.analysis import ablation, compare
from orchestrator.analysis.curves import curves
from orchestrator.analysis.spreads import STATISTICS, UNSETTLED, statistics, unsettled
from orchestrator.analysis.verdicts import VERDICTS, verdicts


@dataclass(frozen=True, slots=True)
class Findings:
    """Tables in the schemas COMPARISON, VERDICTS, CURVES, EFFECTS, STATISTICS and UNSETTLED."""

    comparison: pa.Table
    verdicts: pa.Table
    curves: pa.Table
    ablations: pa.Table
    statistics: pa.Table
    unsettled: pa.Table

    def as_data(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table, by its name."""
        return {field.name: getattr(self, field.name).to_pylist() for field in fields(self)}

    def sentences(self, objective: str) -> dict[tuple[Any, ...], list[str]]:
        """The verdicts for one objective, by the values of `compare.GROUP`."""
        rows = [row for row in self.verdicts.to_pylist() if row["objective"] == objective]
        groups = compare.grouped(rows, compare.GROUP)
        return {
            tuple(group[0][name] for name in compare.GROUP): [row["sentence"] for row in group]
            for group in groups
        }


def of_folders(
    folders: Iterable[Path],
    levels: Mapping[str, float] | None = None,
    until_ci: float | None = None,
) -> Findings:
    """What the results at or below `folders` say; with service `levels` in ms, goodput is that
    under these.

    until_ci: how certain each mean should be; None: as was asked for when the results were made.
    Raises UserError where there are no results, or those of another schema version.
    """
    found = compare.experiments(folders, levels)
    summaries = [summary for _, summary in found]
    comparison = compare.of_summaries(summaries)
    spread = [statistics(summary) for summary in summaries]
    asked = [
        until_ci or (manifest.get("experiment") or {}).get("until_ci") for manifest, _ in found
    ]
    return Findings(
        comparison=comparison,
        verdicts=pa.concat_tables([VERDICTS.empty_table(), *map(verdicts, summaries)]),
        curves=curves(comparison),
        ablations=pa.concat_tables(
            [ablation.EFFECTS.empty_table(), *map(ablation.effects, summaries)]
        ),
        statistics=pa.concat_tables([STATISTICS.empty_table(), *spread]),
        unsettled=pa.concat_tables([UNSETTLED.empty_table(), *map(unsettled, spread, asked)]),
    )
