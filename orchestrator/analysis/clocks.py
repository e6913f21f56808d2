"""The clocks of a run's GPUs, and what held them down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from orchestrator.analysis.samples import Sampled, Trace, mean
from workers.device import GPU_IDLE, POWER_CAP
from workers.rows import column, nothing, row

NAMED_PCT = 0.5  # a share of samples that is worth a word: less rounds to 0%


@row
class Clocks:
    """Clocks of the GPUs during the run; null where none was sampled, as on a CPU."""

    power_capped_pct: float | None = column(
        "share of the samples in which the power cap held clocks down, mean over GPUs",
        "%",
        source="NVML, clocks event reasons",
        over_runs="mean",
    )
    clock_limited_pct: float | None = column(
        "the same for anything that holds clocks down: the power cap, heat, a hardware slowdown, "
        "sync boost or clocks that were set",
        "%",
        source="NVML, clocks event reasons",
        over_runs="mean",
    )
    mean_sm_clock_mhz: float | None = column(
        "clock of the multiprocessors, mean over samples, then over GPUs", "MHz", over_runs="mean"
    )
    lowest_sm_clock_mhz: float | None = column(
        "lowest clock of the multiprocessors in a sample of any GPU", "MHz", over_runs="mean"
    )
    sm_clock_pct: float | None = column(
        "mean clock of the multiprocessors in percent of the highest that the GPU allows, mean "
        "over GPUs",
        "%",
        over_runs="mean",
    )


def clocks_of(seen: Sampled | None) -> Clocks:
    """The clocks of a run, from what was sampled in it."""
    if seen is None:
        return nothing(Clocks)
    return Clocks(
        power_capped_pct=_percent(seen.held_down(POWER_CAP)),
        clock_limited_pct=_percent(seen.held_down(~GPU_IDLE)),
        mean_sm_clock_mhz=mean(seen.over_gpus("sm_clock_mhz", np.mean)),
        lowest_sm_clock_mhz=min(seen.over_gpus("sm_clock_mhz", np.min), default=None),
        sm_clock_pct=_percent([share for one in seen.traces for share in _of_max(one, seen)]),
    )


def sentences(of: Mapping[str, Clocks]) -> Iterator[str]:
    """In how many samples clocks were held down, by the power cap and by anything; nothing where
    they were not. of: the clocks of each layout by its name."""
    capped = _shares(of, lambda one: one.power_capped_pct)
    if capped:
        yield f"Clocks held down by the power cap: {_listed(capped)}."
    limited = _shares(of, _beyond_the_cap)
    if limited:
        yield (
            f"Clocks held down by heat, hardware, settings or the power cap: {_listed(limited)}."
        )


def _beyond_the_cap(one: Clocks) -> float | None:
    """The share of samples in which anything held clocks down, where that is more than the power
    cap did."""
    limited = one.clock_limited_pct
    beyond = (limited or 0.0) - (one.power_capped_pct or 0.0)
    return limited if beyond >= NAMED_PCT else None


def _shares(
    of: Mapping[str, Clocks], share: Callable[[Clocks], float | None]
) -> list[tuple[str, float]]:
    """(name, percent) of those that have a share worth a word."""
    known = [(name, share(one) or 0.0) for name, one in of.items()]
    return [(name, found) for name, found in known if found >= NAMED_PCT]


def _listed(shares: Sequence[tuple[str, float]]) -> str:
    """The first with what it is a share of, the others without."""
    (first, share), *others = shares
    more = [f"{name} in {found:.0f}%" for name, found in others]
    return ", ".join([f"{first} in {share:.0f}% of samples", *more])


def _of_max(trace: Trace, seen: Sampled) -> list[float]:
    """The mean clock of a GPU over the highest that it allows; empty where either is unknown."""
    clock, highest = (
        trace.known(name, seen.duration)[1] for name in ("sm_clock_mhz", "max_sm_clock_mhz")
    )
    return [float(np.mean(clock) / np.max(highest))] if len(clock) and len(highest) else []


def _percent(shares: Sequence[float]) -> float | None:
    found = mean(shares)
    return None if found is None else 100.0 * found
