"""Figures to hold measured ones against: what `orchestrator plan` predicts, and vLLM's on another
node."""

from __future__ import annotations

import csv
from functools import cache
from itertools import product

from both_engines import ENGINES, LAYOUTS, OURS, THEIRS, gpus_of, layouts_of
from published import RESULTS, Published, kind, model_of

from orchestrator.commands.predicting import predicted
from orchestrator.experiment import Experiment
from orchestrator.predict import factors
from orchestrator.predict.plan import Machines
from orchestrator.store.identity import BEFORE

# How `torch` ran passes of few rows before there was a choice.
WITHOUT = {name: BEFORE[OURS][name] for name in ("products", "pdl")}
PEERS = {(4, "h200"): RESULTS / "peers-4xh200.csv"}  # by what `plan` calls the GPUs


def foretold(found: Published) -> dict[tuple[str, int, str], float]:
    """(layout, concurrency, engine) -> tokens per second that `plan` predicts, with the passes of
    few rows as `torch` ran them there and then."""
    known: dict[tuple[str, int, str], float] = {}
    loads = tuple(found.concurrencies)
    what = (model_of(found), kind([found]), gpus_of(found), loads, found.started)
    for layout, engine in product(layouts_of(found), ENGINES):
        every = _predicted(*what, engine, **(few_rows(found, layout) if engine == OURS else {}))
        known |= {at: value for at, value in every.items() if at[0] == layout}
    return known


def is_fitted_on(found: Published, layout: str, concurrency: int, engine: str) -> bool:
    """Whether `plan` may be fitted on the cell, as benchmarks/fit_predictions.py chooses them."""
    of = factors.load().of(engine).provenance
    return (
        found.folder.relative_to(RESULTS.parents[1]).as_posix() in of
        and layout in factors.FITTED_LAYOUTS
        and concurrency <= factors.FITTED_MOST
    )


def few_rows(found: Published, layout: str) -> dict[str, str]:
    """How `torch` ran passes of few rows under a layout."""
    cells = (found.at(layout, n, OURS) for n in found.concurrencies)
    settings = [one.conditions.settings for one in cells if one]
    ((products, pdl),) = {
        (one.products or WITHOUT["products"], one.pdl or WITHOUT["pdl"]) for one in settings
    }
    return {"products": products, "pdl": pdl}


@cache
def _predicted(
    model: str,
    gpu: str,
    gpus: int,
    concurrencies: tuple[int, ...],
    started: str,
    engine: str,
    **few_rows: str,
) -> dict[tuple[str, int, str], float]:
    asked = {"model": model, "engine": (engine,), "max_concurrency": concurrencies, **few_rows}
    machines, layouts = Machines(gpu, gpus), LAYOUTS[gpus]
    plan = predicted(Experiment.model_validate(asked), machines, layouts, started=started)
    assert all(one.provenance.endswith("benchmarks/fit_predictions.py") for one in plan.planned)
    return {
        (one.layout, ranking.max_concurrency, planned.engine): one.output_throughput.value
        for planned in plan.planned
        for ranking in planned.rankings
        for one in ranking.predictions
    }


def peers(found: Published) -> dict[tuple[str, int], float]:
    """(layout, concurrency) -> tokens per second of vLLM in BF16 on another node of such GPUs."""
    return _peers(gpus_of(found), kind([found])).get(model_of(found), {})


@cache
def _peers(gpus: int, gpu: str) -> dict[str, dict[tuple[str, int], float]]:
    if (gpus, gpu) not in PEERS:
        return {}
    by_model: dict[str, dict[tuple[str, int], float]] = {}
    with PEERS[gpus, gpu].open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            alike = row["engine"], row["version"], row["quantization"], row["scenario"]
            if alike == (THEIRS, "0.24.0", "none", "short"):
                at = row["strategy"], int(row["max_concurrency"])
                by_model.setdefault(row["model"], {})[at] = float(row["output_throughput"])
    return by_model
