"""Everything that results say when they are looked at again: the comparison, the verdicts and the curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator import compare
from orchestrator.curves import curves
from orchestrator.verdicts import VERDICTS, verdicts


@dataclass(frozen=True, slots=True)
class Findings:
    """Tables in the schemas COMPARISON, VERDICTS and CURVES."""

    comparison: pa.Table
    verdicts: pa.Table
    curves: pa.Table

    def as_data(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table, by its name."""
        return {name: getattr(self, name).to_pylist() for name in ("comparison", "verdicts", "curves")}

    def sentences(self, objective: str) -> dict[tuple[Any, ...], list[str]]:
        """The verdicts for one objective, by the values of `compare.GROUP`."""
        rows = [row for row in self.verdicts.to_pylist() if row["objective"] == objective]
        groups = compare.grouped(rows, compare.GROUP)
        return {tuple(group[0][name] for name in compare.GROUP): [row["sentence"] for row in group] for group in groups}


def of_folders(folders: Iterable[Path], levels: Mapping[str, float] | None = None) -> Findings:
    """What the results at or below `folders` say; with service `levels` in ms, goodput is that under these.

    Raises UserError where there are no results, or those of another schema version.
    """
    tables = compare.summaries(folders, levels)
    comparison = compare.of_summaries(tables)
    return Findings(comparison, pa.concat_tables([VERDICTS.empty_table(), *map(verdicts, tables)]), curves(comparison))
