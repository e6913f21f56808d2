"""Results from folders: what was kept, with what was observed of each cell put beside its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from orchestrator.analysis.goodput import (
    RATES,
    FoundRate,
    goodput_of,
    limits_of,
    per_request,
    slo_of,
)
from orchestrator.analysis.kernels import CELL_KERNELS, CellKernel
from orchestrator.analysis.observed.accounting import CELL_PARTS, CELL_TIMED
from orchestrator.analysis.observed.communication import StepParts, slowest_of, step_parts_of
from orchestrator.analysis.observed.operations import (
    JOINED_COLLECTIVES,
    RUN_COLLECTIVES,
    operations_of,
    with_timing,
)
from orchestrator.analysis.summary import MEASURED, SUMMARY, Measured, Summary
from orchestrator.analysis.token_cost import token_cost_of
from orchestrator.errors import UserError
from orchestrator.store import folders
from orchestrator.store.arrow_files import concat
from orchestrator.store.schema import COMPLETED, RUN_KEYS, RunKey, StartKey
from orchestrator.store.store import TABLES, Store
from workers.rows import Table, grouped, nothing, widened

K = TypeVar("K", bound=StartKey)


@dataclass(frozen=True, slots=True)
class Results:
    """One experiment as it was kept: its folder, its manifest, a row for every run, and the kernels
    that were counted."""

    folder: Path
    manifest: Mapping[str, Any]
    runs: Sequence[Summary]
    kernels: Sequence[CellKernel] = ()

    @property
    def asked(self) -> Mapping[str, Any]:
        """The fields of the experiment, empty where the manifest does not know them."""
        found = self.manifest.get("experiment")
        return found if isinstance(found, dict) else {}


def load(paths: Iterable[Path], levels: Mapping[str, float] | None = None) -> list[Results]:
    """The experiments at or below `paths` that have a run.

    levels: service levels in ms under which goodput, and whether an SLO is met, are worked out
    again. Without them the requests are not read, so that a result of many requests opens as fast
    as one of few.
    Raises UserError where there are no results, none that can be read, those of another schema
    version, or tables that do not belong together.
    """
    stores = [Store(folder) for path in paths for folder in folders.find(path)]
    for store in stores:
        folders.check_version(store.folder)
    found = [(store, summaries(store, levels)) for store in stores]
    unreadable = [str(one.folder) for one, runs in found if not runs and one.holds(SUMMARY.name)]
    if unreadable and not any(runs for _, runs in found):
        raise UserError(f"no run in {', '.join(unreadable)} can be read; make them again")
    return [
        Results(store.folder, store.manifest(), runs, _rows(store, CELL_KERNELS))
        for store, runs in found
        if runs
    ]


def summaries(store: Store, levels: Mapping[str, float] | None = None) -> list[Summary]:
    """Every run of an experiment, with what was observed of its cell. See `load`."""
    runs = _rows(store, MEASURED)
    experiments = {run.cell.experiment for run in runs}
    for table in TABLES:
        _check_experiment(store, table, experiments)
    if levels:
        runs = _with_levels(runs, store.read("requests"), levels)
    return _joined(store, runs)


def found_rates(paths: Iterable[Path]) -> list[FoundRate]:
    """What searches of rates found, of the folders among `paths` that are those of one."""
    kept = (Store(path).rates() for path in paths)
    return [one for table in kept if table is not None for one in RATES.rows(table)]


def tables(folder: Path) -> dict[str, pa.Table]:
    """Every table of the experiments at or below `folder`, whole, for other tools.

    The summary has what was observed of each cell beside its runs, and so have the collectives. The
    comparison is the one that was kept, if there is one, and so are the effects of techniques and
    what a search of rates found.
    """
    stores = [Store(path) for path in folders.find(folder)]
    for store in stores:
        folders.check_version(store.folder)
    whole = {name: concat(store.read(name) for store in stores) for name in TABLES}
    runs = [run for store in stores for run in summaries(store)]
    whole["summary"] = SUMMARY.make(runs) if runs else None
    if whole["collectives"] is not None:
        counted = [one for store in stores for one in _rows(store, RUN_COLLECTIVES)]
        timed = [one for store in stores for one in _rows(store, CELL_TIMED)]
        whole["collectives"] = JOINED_COLLECTIVES.make(with_timing(counted, timed))
    whole["comparison"] = concat(store.comparison() for store in stores)
    whole["ablation"] = concat(store.ablation() for store in stores)
    whole["rates"] = Store(folder).rates()
    return {name: table for name, table in whole.items() if table is not None}


def parts(packed: Path) -> dict[str, pa.Table]:
    """Every table of packed results as the runs wrote it: without what `tables` put beside it, and
    without what is worked out again. Raises UserError where it is not packed, or damaged."""
    if not folders.is_packed(packed):
        raise UserError(f"{packed} holds no packed results; give a folder that `pack` wrote")
    store = Store(packed)
    whole = {name: store.read(name) for name in TABLES if store.holds(name)}
    damaged = [f"{name}.arrow" for name, table in whole.items() if table is None]
    if damaged:
        raise UserError(f"{packed}: {', '.join(damaged)} is damaged; get the packed results again")
    found = {name: table for name, table in whole.items() if table is not None}
    for kept in (MEASURED, RUN_COLLECTIVES):
        if kept.name in found:
            names = {column.name for column in kept.columns}
            there = found[kept.name].column_names
            found[kept.name] = found[kept.name].select([one for one in there if one in names])
    return found


def _rows(store: Store, table: Table[K]) -> list[K]:
    kept = store.read(table.name)
    return [] if kept is None else table.rows(kept)


def _joined(store: Store, runs: Sequence[Measured]) -> list[Summary]:
    parts = grouped(_rows(store, CELL_PARTS), _start_key)
    timed = grouped(_rows(store, CELL_TIMED), _start_key)
    counted = grouped(_rows(store, RUN_COLLECTIVES), _run_key)

    def joined(run: Measured) -> Summary:
        observed = _start_key(run) if run.status == COMPLETED else None
        mine, is_open = parts.get(observed, ()), run.arrivals.is_open
        step = step_parts_of(mine) if observed else nothing(StepParts)
        tokens = run.throughput.total_output_tokens
        return widened(
            Summary,
            run,
            step=step,
            slowest=slowest_of(mine, run.links.nodes or ()),
            cost=token_cost_of(run.device_time, tokens, mine, step, is_open),
            operations=operations_of(counted.get(_run_key(run), ()), timed.get(observed, ())),
        )

    return list(map(joined, runs))


def _start_key(one: StartKey) -> StartKey | None:
    return StartKey(cell=one.cell, start=one.start)


def _run_key(one: RunKey) -> RunKey:
    return RunKey(cell=one.cell, start=one.start, run=one.run)


def _check_experiment(store: Store, name: str, experiments: set[str]) -> None:
    """Raise UserError where a table names an experiment that the summary does not know: its rows
    could be put beside no run."""
    strange = sorted(store.experiments_in(name) - experiments)
    if strange and experiments:
        raise UserError(
            f"{store.folder}: the table {name} is of the experiment {', '.join(strange)}, the "
            f"summary of {', '.join(sorted(experiments))}; the folder was put together from two "
            "results. Use the folder that `orchestrator submit` wrote, or pack it with "
            "`orchestrator pack`"
        )


def _with_levels(
    runs: Sequence[Measured], requests: pa.Table | None, levels: Mapping[str, float]
) -> list[Measured]:
    """The runs under other service levels than theirs, from the kept requests: goodput where a
    level is of a request, the SLO where one is of a percentile; the other one stays as it is."""
    keys = [] if requests is None else RUN_KEYS.rows(requests)
    places = grouped(range(len(keys)), keys.__getitem__)
    changed: dict[str, Any] = {}
    if per_request(levels):
        changed["goodput"] = goodput_of
    if limits_of(levels):
        changed["slo"] = slo_of

    def judged(run: Measured) -> Measured:
        mine = places.get(_run_key(run))
        found = None if requests is None or not mine else requests.take(mine)
        count = run.conditions.num_prompts
        groups = {
            name: nothing(type(getattr(run, name))) if found is None else of(found, levels, count)
            for name, of in changed.items()
        }
        return replace(run, **groups)

    return list(map(judged, runs))
