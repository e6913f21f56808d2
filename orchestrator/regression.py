"""A new result against a base: which cells became slower beyond noise, and what else is different between the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import compare, results
from orchestrator.confidence import Ratio, ratio
from orchestrator.errors import UserError
from orchestrator.keys import CELL_KEY
from orchestrator.metrics import COMPLETED
from orchestrator.verdicts import times

CELL = tuple(name for name in CELL_KEY if name not in ("experiment", "ablation"))
# What a manifest says of the environment; of a GPU only what does not change from minute to minute.
ENVIRONMENT = ("device", "driver_version", "nccl_version", "git_commit", "versions", "host", "topology")
GPU = ("name", "memory_bytes", "max_sm_clock_mhz", "power_limit_w")
WORKLOAD = ("seed", "num_prompts", "prefill_tokens", "chunked_prefill", "temperature", "load_format", "ignore_eos")

SLOWER, SAME, LOST, ONLY_BASE, ONLY_NEW = "slower", "ok", "failed", "only in base", "only in new"


@dataclass(frozen=True, slots=True)
class Report:
    """environment: (what, in the base, in the new one) for all that differs. cells: a row each, with `verdict` and `sentence`."""

    environment: list[tuple[str, str, str]]
    cells: list[dict[str, Any]]

    @property
    def regressions(self) -> list[dict[str, Any]]:
        """The cells that became slower than what is allowed, or no longer work."""
        return [cell for cell in self.cells if cell["verdict"] in (SLOWER, LOST)]

    def as_data(self) -> dict[str, Any]:
        """The same for JSON."""
        environment = [dict(zip(("what", "base", "new"), one, strict=True)) for one in self.environment]
        return {"environment": environment, "cells": self.cells, "regressions": [cell["cell"] for cell in self.regressions]}


def of_folders(base: Path, new: Path, fail_below: float) -> Report:
    """`new` against `base`. Raises UserError where a folder has no results, holds a cell twice, or they share no cell."""
    cells = compared(_runs(base), _runs(new), fail_below)
    if all(cell["verdict"] in (ONLY_BASE, ONLY_NEW) for cell in cells):
        raise UserError(f"{base} and {new} have no cell in common; give two results of the same models, layouts and concurrencies")
    return Report(differences(_manifest(base), _manifest(new)), cells)


def compared(base: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], fail_below: float) -> list[dict[str, Any]]:
    """A row for each cell of the summary rows `base` and `new`, joined by everything but the experiment's name.

    A cell is slower where the upper end of the 95% interval of new / base output_throughput is below `fail_below`; where
    a side has one run there is no interval and the plain ratio decides. It has failed where only the base completed it.
    """
    sides = [{_key(runs[0]): runs for runs in compare.grouped([dict(row) for row in rows], CELL)} for rows in (base, new)]
    keys = sorted(sides[0].keys() | sides[1].keys(), key=str)
    return [_cell(key, sides[0].get(key), sides[1].get(key), fail_below) for key in keys]


def differences(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What two manifests say differently of hardware, software and work, as (what, base, new)."""
    flat = [_flat(_environment(manifest)) for manifest in (base, new)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return [(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]


def _cell(
    key: tuple[Any, ...], base: list[dict[str, Any]] | None, new: list[dict[str, Any]] | None, fail_below: float
) -> dict[str, Any]:
    values = [[run["output_throughput"] for run in runs or () if _has_result(run)] for runs in (base, new)]
    found = ratio(values[1], values[0])
    name = ".".join(str(part) for part in key[:-1] if part != "none") + f".c{key[-1]}"
    verdict, said = _verdict(base, new, values, found, fail_below)
    return {
        "cell": name, **dict(zip(CELL, key, strict=True)), "verdict": verdict,
        "ratio": found.value if found else None, "ci_low": found.low if found else None, "ci_high": found.high if found else None,
        "base_runs": len(values[0]), "new_runs": len(values[1]), "sentence": f"{name}: {said}",
    }


def _verdict(
    base: list[dict[str, Any]] | None, new: list[dict[str, Any]] | None, values: list[list[float]], found: Ratio | None,
    fail_below: float,
) -> tuple[str, str]:
    if base is None or new is None:
        return (ONLY_NEW, "only in the new result") if base is None else (ONLY_BASE, "only in the base")
    if not values[0]:
        return SAME, "failed in the base too" if not values[1] else "failed in the base, has a result now"
    if found is None:
        return LOST, f"failed, had a result in the base: {new[-1].get('reason') or 'no token was made'}"
    upper = found.value if found.high is None else found.high
    noise = " (one run on a side: no interval, the plain ratio decides)" if found.high is None else ""
    slower = f", below {fail_below:g}" if upper < fail_below else ""
    return SLOWER if slower else SAME, f"{times(found)} of the base{slower}{noise}"


def _runs(folder: Path) -> list[dict[str, Any]]:
    tables = compare.summaries([folder])
    owners: dict[tuple[Any, ...], str] = {}
    rows = [row for table in tables for row in compare.whole(table)]
    for row in rows:
        first = owners.setdefault(_key(row), row["experiment"])
        if first != row["experiment"]:
            raise UserError(f"{folder} holds the same cell in {first} and {row['experiment']}; give one experiment's folder")
    return rows


def _has_result(run: Mapping[str, Any]) -> bool:
    return run["status"] == COMPLETED and bool(run["output_throughput"])


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the first experiment at or below `folder`; those of one root come from one machine."""
    return results.read_manifest(results.find(folder)[0])


def _environment(manifest: Mapping[str, Any]) -> dict[str, Any]:
    experiment = manifest.get("experiment") or {}
    return {
        "gpus": [{name: gpu.get(name) for name in GPU} for gpu in manifest.get("gpus") or ()],
        **{name: manifest.get(name) for name in ENVIRONMENT},
        "work": {name: experiment.get(name) for name in WORKLOAD},
    }


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested fields as one level of `a.b.0`; what is None is left out."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {} if value is None else {name: str(value)}
    return {k: v for key, part in items for k, v in _flat(part, f"{name}.{key}" if name else str(key)).items()}
