"""A new result against a base: which cells became slower beyond noise, and what else is different
between the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.analysis.comparing.confidence import Ratio, ratio
from orchestrator.analysis.comparing.rounds import whole
from orchestrator.analysis.comparing.sentences import times
from orchestrator.analysis.load import Results, load
from orchestrator.analysis.summary import Summary
from orchestrator.errors import UserError
from orchestrator.store.schema import COMPLETED
from workers.rows import Table, column, grouped, row

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
SLOWER, SAME, LOST = "slower", "ok", "failed"
ONLY_BASE, ONLY_NEW = "only in base", "only in new"


class Key(NamedTuple):
    """What a cell of two results must agree in: all that names it but the experiment, and how its
    requests arrive, which is part of the work."""

    model: str
    strategy: str
    engine: str
    dtype: str
    quantization: str
    scenario: str
    max_concurrency: int
    request_rate: float | None
    burstiness: float | None

    @property
    def name(self) -> str:
        """The key as a word, as in tiny.tp2.torch.float32.short.c8."""
        parts = (*self[:6], f"c{self.max_concurrency}")
        name = ".".join(str(part) for part in parts if part != "none")
        uneven = self.request_rate and self.burstiness not in (None, 1.0)
        rate = f".rate{self.request_rate:g}" if self.request_rate else ""
        return name + rate + (f".burst{self.burstiness:g}" if uneven else "")

    @property
    def arrivals(self) -> str:
        """How requests arrive, in words."""
        if not self.request_rate:
            return "a closed loop"
        uneven = self.burstiness not in (None, 1.0)
        burstiness = f" with burstiness {self.burstiness:g}" if uneven else ""
        return f"an open loop at {self.request_rate:g} requests/s{burstiness}"


@row
class CellChange:
    """One cell in a base and in a new result."""

    cell: str = column("its name")
    model: str = column("name of the model")
    strategy: str = column("layout")
    engine: str = column("engine that executes it")
    dtype: str = column("type of weights and activations")
    quantization: str = column("quantization of the weights")
    scenario: str = column("name of the lengths")
    max_concurrency: int = column("requests in flight at most", "requests")
    request_rate: float | None = column("requests that arrive a second", "requests/s")
    burstiness: float | None = column("shape of the gaps between them", "1")
    verdict: str = column("slower, ok, failed, only in base, only in new")
    ratio: float | None = column("output_throughput of the new one over the base's", "1")
    ci_low: float | None = column("lower end of its 95% interval", "1", source="Welch")
    ci_high: float | None = column("upper end of it", "1", source="Welch")
    base_runs: int = column("runs of the base that count", "1")
    new_runs: int = column("runs of the new one that count", "1")
    sentence: str = column("the same in words")


CHANGES = Table("changes", CellChange)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the two environments differ in."""

    what: str
    base: str
    new: str


@dataclass(frozen=True, slots=True)
class Report:
    """environment: all that differs in any experiments that share a cell, the work first."""

    environment: Sequence[Difference]
    cells: Sequence[CellChange]

    @property
    def regressions(self) -> list[CellChange]:
        """The cells that became slower than what is allowed, or no longer work."""
        return [cell for cell in self.cells if cell.verdict in (SLOWER, LOST)]

    def as_data(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return {
            "environment": [
                {"what": one.what, "base": one.base, "new": one.new} for one in self.environment
            ],
            "cells": CHANGES.data(self.cells),
            "regressions": [cell.cell for cell in self.regressions],
        }


def of_folders(base: Path, new: Path, fail_below: float) -> Report:
    """`new` against `base`.

    Raises UserError where a folder has no results, holds a cell twice, or they share no cell.
    """
    before, after = _cells(base), _cells(new)
    shared = [(before[key][0], after[key][0]) for key in before if key in after]
    if not shared:
        raise UserError(
            f"{base} and {new} have no cell in common; {_what_to_give(list(before), list(after))}"
        )
    found = [one for pair in shared for one in differences(pair[0].manifest, pair[1].manifest)]
    environment = sorted(dict.fromkeys(found), key=lambda one: not one.what.startswith("work."))
    old, young = ([run for _, runs in side.values() for run in runs] for side in (before, after))
    return Report(environment, compared(old, young, fail_below))


def compared(
    base: Iterable[Summary], new: Iterable[Summary], fail_below: float
) -> list[CellChange]:
    """A row for each cell of the runs `base` and `new`, joined by `Key`.

    A cell is slower where the upper end of the 95% interval of new / base output_throughput is
    below `fail_below`; where a side has one run there is no interval and the plain ratio decides.
    It has failed where only the base completed it.
    """
    before, after = grouped(base, key_of), grouped(new, key_of)
    keys = sorted(before.keys() | after.keys(), key=str)
    return [_change(key, before.get(key), after.get(key), fail_below) for key in keys]


def key_of(run: Summary) -> Key:
    """What the cell of a run is joined by."""
    cell, arrivals = run.cell, run.arrivals
    return Key(
        cell.model,
        cell.strategy,
        cell.engine,
        cell.dtype,
        cell.quantization,
        cell.scenario,
        cell.max_concurrency,
        arrivals.request_rate,
        arrivals.burstiness,
    )


def differences(base: Mapping[str, object], new: Mapping[str, object]) -> list[Difference]:
    """What two manifests say differently of hardware, software and work."""
    flat = [_flat(_environment(manifest)) for manifest in (base, new)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return [Difference(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]


def _change(
    key: Key, base: list[Summary] | None, new: list[Summary] | None, fail_below: float
) -> CellChange:
    values = _throughputs(base), _throughputs(new)
    found = ratio(values[1], values[0])
    verdict, said = _verdict(base, new, found, fail_below)
    return CellChange(
        cell=key.name,
        **key._asdict(),
        verdict=verdict,
        ratio=found.value if found else None,
        ci_low=found.low if found else None,
        ci_high=found.high if found else None,
        base_runs=len(values[0]),
        new_runs=len(values[1]),
        sentence=f"{key.name}: {said}",
    )


def _throughputs(runs: Sequence[Summary] | None) -> list[float]:
    """output_throughput of the runs that have a result."""
    done = [run for run in runs or () if run.status == COMPLETED]
    return [reached for run in done if (reached := run.throughput.output_throughput)]


def _verdict(
    base: Sequence[Summary] | None,
    new: Sequence[Summary] | None,
    found: Ratio | None,
    fail_below: float,
) -> tuple[str, str]:
    if base is None:
        return ONLY_NEW, "only in the new result"
    if new is None:
        return ONLY_BASE, "only in the base"
    if not _throughputs(base):
        has_one = bool(_throughputs(new))
        return SAME, f"failed in the base{', has a result now' if has_one else ' too'}"
    if found is None:
        return LOST, f"failed, had a result in the base: {new[-1].reason or 'no token was made'}"
    return _against(found, fail_below)


def _against(found: Ratio, fail_below: float) -> tuple[str, str]:
    upper = found.value if found.high is None else found.high
    noise = " (one run on a side: no interval, the plain ratio decides)"
    said = f"{times(found)} of the base"
    slower = upper < fail_below
    below = f", below {fail_below:g}" if slower else ""
    return SLOWER if slower else SAME, said + below + ("" if found.high is not None else noise)


def _cells(folder: Path) -> dict[Key, tuple[Results, list[Summary]]]:
    """The runs of each cell of the experiments at or below `folder`, and the experiment's
    results."""
    found: dict[Key, tuple[Results, list[Summary]]] = {}
    for results in load([folder]):
        for key, runs in grouped(whole(results.runs), key_of).items():
            if key in found:
                first = found[key][1][0].cell.experiment
                raise UserError(
                    f"{folder} holds the same cell in {first} and {runs[0].cell.experiment}; "
                    "give one experiment's folder"
                )
            found[key] = results, runs
    return found


def _what_to_give(base: Sequence[Key], new: Sequence[Key]) -> str:
    """What would make two results comparable that have no key in common."""
    theirs = {key[:7]: key for key in new}
    for key in base:
        if key[:7] in theirs:
            other = theirs[key[:7]].arrivals
            return (
                f"one is {key.arrivals}, the other {other}; give two results of the same arrivals"
            )
    return "give two results of the same models, layouts and concurrencies"


def _environment(manifest: Mapping[str, object]) -> dict[str, object]:
    asked, gpus = manifest.get("experiment"), manifest.get("gpus")
    work = asked if isinstance(asked, dict) else {}
    known = gpus if isinstance(gpus, list) else []
    return {
        "gpus": [{name: gpu.get(name) for name in GPU} for gpu in known],
        **{name: manifest.get(name) for name in ENVIRONMENT},
        "work": {name: work.get(name) for name in WORKLOAD},
    }


def _flat(value: object, name: str = "") -> dict[str, str]:
    """Nested fields as one level of `a.b.0`; what is None is left out."""
    items: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {} if value is None else {name: str(value)}
    inside = [(f"{name}.{key}" if name else str(key), part) for key, part in items]
    return {key: text for path, part in inside for key, text in _flat(part, path).items()}
