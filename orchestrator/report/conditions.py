"""Under which conditions the cells of a load ran, as lines beside their table: what held clocks
down, and which cross-checks failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.analysis.comparing.compare import Comparison
from orchestrator.report.text import percent

SEEN_PCT = 0.5  # less rounds to 0%


def clock_lines(cells: Sequence[Comparison], names: Sequence[str]) -> Iterator[str]:
    """In how many samples clocks were held down, by the power cap and by more than that; nothing
    where they were not. names: of the cells, in their order."""
    capped = _shares(cells, names, lambda one: one.clocks.power_capped_pct)
    if capped:
        yield f"Power cap: {_listed(capped, ' held its clocks down in', ' of samples')}."
    limited = _shares(cells, names, _beyond_the_cap)
    if limited:
        yield (
            "Clocks held down by heat, hardware, settings or the power cap: "
            f"{_listed(limited, ' in', ' of samples')}."
        )


def crosscheck_lines(cells: Sequence[Comparison], names: Sequence[str]) -> Iterator[str]:
    """Which two measures of the same thing disagree; nothing where all agree."""
    for one, name in zip(cells, names, strict=True):
        if one.crosscheck.crosscheck_reasons:
            yield f"Cross-check of {name} failed in a run: {one.crosscheck.crosscheck_reasons}."


def _beyond_the_cap(one: Comparison) -> float | None:
    """The share of samples in which anything held clocks down, where that is more than the power
    cap did."""
    limited, capped = one.clocks.clock_limited_pct, one.clocks.power_capped_pct
    return None if limited is None or limited - (capped or 0.0) < SEEN_PCT else limited


def _shares(
    cells: Sequence[Comparison], names: Sequence[str], share: Callable[[Comparison], float | None]
) -> list[tuple[str, float]]:
    """(name, percent) of the cells that have a share worth a word."""
    known = [(name, share(one) or 0.0) for one, name in zip(cells, names, strict=True)]
    return [(name, found) for name, found in known if found >= SEEN_PCT]


def _listed(shares: Sequence[tuple[str, float]], verb: str, of: str) -> str:
    """The first with its verb and what it is a share of, the others without."""
    (first, share), *others = shares
    more = (f"{name} in {percent(found, 0)}" for name, found in others)
    return ", ".join([f"{first}{verb} {percent(share, 0)}{of}", *more])
