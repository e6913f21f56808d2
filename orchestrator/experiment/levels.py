"""Service levels: limits in milliseconds on the latencies of each request (goodput), or on their
percentiles over the requests of a run (an SLO)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.experiment.pairs import once

LEVELS = ("ttft", "tpot", "e2el")  # latencies that --goodput may limit: a request has one of each
LATENCIES = ("ttft", "tpot", "itl", "e2el")  # those that --slo may limit
PERCENTILE = re.compile(r"([a-z0-9]+):p([0-9]+(?:\.[0-9]+)?)")
# The limits of a recommendation, which are on medians: no tail is predicted.
PREDICTED = "slo of a prediction"
MEDIAN = ":p50"
FORMS = {
    "goodput": "METRIC:MILLISECONDS, as in ttft:2000 tpot:200",
    "slo": "METRIC:PERCENTILE:MILLISECONDS, as in ttft:p99:2000 tpot:p95:50",
    PREDICTED: "METRIC:MILLISECONDS, as in ttft:2000 tpot:50",
}


def parse_levels(texts: Iterable[str], field: str) -> dict[str, float]:
    """`ttft:2000 tpot:200` as a mapping, its names unchecked. field: "goodput", "slo" or PREDICTED.
    Raises ValueError for a word that does not have the form KEY:NUMBER, and for two limits on
    one."""
    words = [word for text in texts for word in str(text).replace(",", " ").split()]
    pairs = [word.rpartition(":") for word in words]
    for word, (key, _, value) in zip(words, pairs, strict=True):
        if not (key and _is_number(value)):
            raise ValueError(f"{field} is {FORMS[field]}; found '{word}'")
    levels = once(field, ((key, value) for key, _, value in pairs))
    return {key: float(value) for key, value in levels.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def medians(texts: Iterable[str]) -> dict[str, float]:
    """`ttft:2000 tpot:p50:50` as limits in ms on medians, by latency. Raises ValueError for what is
    none, and for two limits on one latency."""
    levels = check_levels(parse_levels(texts, PREDICTED), PREDICTED)
    found = {name.removesuffix(MEDIAN): limit for name, limit in levels.items()}
    if len(found) < len(levels):
        raise ValueError(
            f"slo {', '.join(levels)}: one metric has two limits; leave one of them out"
        )
    return found


def check_levels(levels: dict[str, float], field: str) -> dict[str, float]:
    """`levels`, if it names latencies that there are and times above 0 ms. Raises ValueError."""
    for name, limit in levels.items():
        if field == "slo":
            _check_percentile(name, limit)
        elif field == "goodput":
            _check_level(name)
        else:
            _check_median(name)
        if not 0 < limit < float("inf"):
            raise ValueError(
                f"{field} {name}:{limit:g}: a service level is a number of milliseconds above 0"
            )
    return levels


def _check_level(name: str) -> None:
    if name not in LEVELS:
        raise ValueError(f"goodput has no metric '{name}'; use {', '.join(LEVELS)}")


def _check_percentile(name: str, limit: float) -> None:
    match = PERCENTILE.fullmatch(name)
    if match is None:
        raise ValueError(f"slo is {FORMS['slo']}; found '{name}:{limit:g}'")
    if match[1] not in LATENCIES:
        raise ValueError(f"slo has no metric '{match[1]}'; use {', '.join(LATENCIES)}")
    if not 0 < float(match[2]) <= 100:
        raise ValueError(f"slo {name}: a percentile is above p0 and at most p100")


def _check_median(name: str) -> None:
    metric, separator, percentile = name.partition(":")
    if metric not in LEVELS:
        raise ValueError(f"{PREDICTED} has no metric '{metric}'; use {', '.join(LEVELS)}")
    if separator and f":{percentile}" != MEDIAN:
        raise ValueError(
            f"slo {name}: a prediction is of medians, and not of the tail {percentile}; give "
            f"{metric}:MILLISECONDS, and measure the tail with `submit --slo`"
        )
