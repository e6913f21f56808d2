"""A new result against a base: which cells became slower beyond noise, and what else is different
between the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis import compare
from orchestrator.analysis.confidence import Ratio, ratio
from orchestrator.analysis.metrics import COMPLETED
from orchestrator.analysis.verdicts import times
from orchestrator.errors import UserError
from orchestrator.store.schema import CELL_KEY

CELL = tuple(name for name in CELL_KEY if name not in ("experiment", "ablation"))
KEY = (
    *CELL,
    "request_rate",
    "burstiness",
)  # how requests arrive is part of the work; both are None for a closed loop
# What a manifest says of the environment; of a GPU only what does not change from minute to minute.
ENVIRONMENT = (
    "device",
    "driver_version",
    "nccl_version",
    "git_commit",
    "versions",
    "host",
    "topology",
)
GPU = ("name", "memory_bytes", "max_sm_clock_mhz", "power_limit_w")
WORKLOAD = (
    "request_rate",
    "burstiness",
    "dataset_path",
    "num_prompts",
    "num_warmups",
    "seed",
    "prefill_tokens",
    "chunked_prefill",
    "temperature",
    "load_format",
    "ignore_eos",
    "nsys",
)

SLOWER, SAME, LOST, ONLY_BASE, ONLY_NEW = "slower", "ok", "failed", "only in base", "only in new"


@dataclass(frozen=True, slots=True)
class Report:
    """environment: (what, in the base, in the new one) for all that differs, the work first, of any
    experiments that share a cell.

    cells: a row each, with `verdict` and `sentence`.
    """

    environment: list[tuple[str, str, str]]
    cells: list[dict[str, Any]]

    @property
    def regressions(self) -> list[dict[str, Any]]:
        """The cells that became slower than what is allowed, or no longer work."""
        return [cell for cell in self.cells if cell["verdict"] in (SLOWER, LOST)]

    def as_data(self) -> dict[str, Any]:
        """The same for JSON."""
        environment = [
            dict(zip(("what", "base", "new"), one, strict=True)) for one in self.environment
        ]
        return {
            "environment": environment,
            "cells": self.cells,
            "regressions": [cell["cell"] for cell in self.regressions],
        }


def of_folders(base: Path, new: Path, fail_below: float) -> Report:
    """`new` against `base`. Raises UserError where a folder has no results, holds a cell twice, or
    they share no cell."""
    before, after = _cells(base), _cells(new)
    shared = [(manifest, after[key][0]) for key, (manifest, _) in before.items() if key in after]
    if not shared:
        raise UserError(f"{base} and {new} have no cell in common; {_what_to_give(before, after)}")
    rows = [[run for _, runs in side.values() for run in runs] for side in (before, after)]
    environment = dict.fromkeys(found for manifests in shared for found in differences(*manifests))
    work_first = sorted(environment, key=lambda found: not found[0].startswith("work."))
    return Report(work_first, compared(rows[0], rows[1], fail_below))


def compared(
    base: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], fail_below: float
) -> list[dict[str, Any]]:
    """A row for each cell of the summary rows `base` and `new`, joined by KEY: by all that names a
    cell but the experiment.

    A cell is slower where the upper end of the 95% interval of new / base output_throughput is
    below `fail_below`; where a side has one run there is no interval and the plain ratio decides.
    It has failed where only the base completed it.
    """
    sides = [
        {_key(runs[0]): runs for runs in compare.grouped([dict(row) for row in rows], KEY)}
        for rows in (base, new)
    ]
    keys = sorted(sides[0].keys() | sides[1].keys(), key=str)
    return [_cell(key, sides[0].get(key), sides[1].get(key), fail_below) for key in keys]


def differences(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What two manifests say differently of hardware, software and work, as (what, base, new)."""
    flat = [_flat(_environment(manifest)) for manifest in (base, new)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return [(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]


def _cell(
    key: tuple[Any, ...],
    base: list[dict[str, Any]] | None,
    new: list[dict[str, Any]] | None,
    fail_below: float,
) -> dict[str, Any]:
    values = [
        [run["output_throughput"] for run in runs or () if _has_result(run)] for runs in (base, new)
    ]
    found = ratio(values[1], values[0])
    name = _name(key)
    verdict, said = _verdict(base, new, values, found, fail_below)
    return {
        "cell": name,
        **dict(zip(KEY, key, strict=True)),
        "verdict": verdict,
        "ratio": found.value if found else None,
        "ci_low": found.low if found else None,
        "ci_high": found.high if found else None,
        "base_runs": len(values[0]),
        "new_runs": len(values[1]),
        "sentence": f"{name}: {said}",
    }


def _verdict(
    base: list[dict[str, Any]] | None,
    new: list[dict[str, Any]] | None,
    values: list[list[float]],
    found: Ratio | None,
    fail_below: float,
) -> tuple[str, str]:
    if base is None or new is None:
        return (
            (ONLY_NEW, "only in the new result")
            if base is None
            else (ONLY_BASE, "only in the base")
        )
    if not values[0]:
        return SAME, "failed in the base too" if not values[
            1
        ] else "failed in the base, has a result now"
    if found is None:
        return (
            LOST,
            f"failed, had a result in the base: {new[-1].get('reason') or 'no token was made'}",
        )
    upper = found.value if found.high is None else found.high
    noise = (
        " (one run on a side: no interval, the plain ratio decides)" if found.high is None else ""
    )
    slower = f", below {fail_below:g}" if upper < fail_below else ""
    return SLOWER if slower else SAME, f"{times(found)} of the base{slower}{noise}"


def _cells(folder: Path) -> dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, Any]]]]:
    """By KEY, the runs of each cell of the experiments at or below `folder`, and the manifest of
    its experiment."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for manifest, summary in compare.experiments([folder]):
        for runs in compare.grouped(compare.whole(summary), KEY):
            first = found.setdefault(_key(runs[0]), (manifest, runs))[1]
            if first is not runs:
                names = f"{first[0]['experiment']} and {runs[0]['experiment']}"
                raise UserError(
                    f"{folder} holds the same cell in {names}; give one experiment's folder"
                )
    return found


def _what_to_give(base: Iterable[tuple[Any, ...]], new: Iterable[tuple[Any, ...]]) -> str:
    """What would make two results comparable, of whose keys none is in both."""
    sides = [{key[: len(CELL)]: key for key in side} for side in (base, new)]
    for cell, key in sides[0].items():
        if cell in sides[1]:
            return (
                f"one is {_arrivals(key)}, the other {_arrivals(sides[1][cell])}; give two "
                "results of the same arrivals"
            )
    return "give two results of the same models, layouts and concurrencies"


def _name(key: tuple[Any, ...]) -> str:
    *names, concurrency, rate, burstiness = key
    name = ".".join(str(part) for part in names if part != "none") + f".c{concurrency}"
    return (
        name
        + (f".rate{rate:g}" if rate else "")
        + (f".burst{burstiness:g}" if rate and burstiness not in (None, 1.0) else "")
    )


def _arrivals(key: tuple[Any, ...]) -> str:
    rate, burstiness = key[len(CELL) :]
    uneven = "" if burstiness in (None, 1.0) else f" with burstiness {burstiness:g}"
    return f"an open loop at {rate:g} requests/s{uneven}" if rate else "a closed loop"


def _has_result(run: Mapping[str, Any]) -> bool:
    return run["status"] == COMPLETED and bool(run["output_throughput"])


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


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
    return {
        k: v
        for key, part in items
        for k, v in _flat(part, f"{name}.{key}" if name else str(key)).items()
    }
