"""What was predicted of a run before it was made, beside what came of it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.analysis.latency import Latency
from orchestrator.analysis.throughput import Throughput
from workers.rows import column, group, row

MODEL = "docs/predictions.md"


@row
class Interval:
    """The ends of a 90% interval."""

    low: float | None = column(
        "{about}: the lower end of its 90% interval", source=MODEL, over_runs="first"
    )
    high: float | None = column(
        "{about}: the upper end of its 90% interval", source=MODEL, over_runs="first"
    )

    def misses(self, value: float | None) -> bool:
        """Whether a value that was measured lies outside."""
        if value is None or self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high


@row
class Predicted:
    """What the cost model said of a run. Null, with the reason, where it says nothing."""

    output_throughput: float | None = column(
        "predicted generated tokens per second", "tokens/s", source=MODEL, over_runs="first"
    )
    output_throughput_ends: Interval = group(
        "output_throughput_{}", "predicted output_throughput", unit="tokens/s"
    )
    median_ttft_ms: float | None = column(
        "predicted time to first token, median", "ms", source=MODEL, over_runs="first"
    )
    median_ttft_ms_ends: Interval = group(
        "median_ttft_ms_{}", "predicted median_ttft_ms", unit="ms"
    )
    median_tpot_ms: float | None = column(
        "predicted time for each token after the first, median",
        "ms",
        source=MODEL,
        over_runs="first",
    )
    median_tpot_ms_ends: Interval = group(
        "median_tpot_ms_{}", "predicted median_tpot_ms", unit="ms"
    )
    device_ms_per_token: float | None = column(
        "predicted time of all devices for each token made", "ms", source=MODEL, over_runs="first"
    )
    error_pct: float | None = column(
        "by how much output_throughput was predicted too high",
        "%",
        formula="100 x (predicted_output_throughput / output_throughput - 1)",
        over_runs="mean",
    )
    missed: str | None = column(
        "which of output_throughput, median_ttft_ms and median_tpot_ms lie outside of their "
        "intervals; empty where none does",
        over_runs="first",
    )
    reason: str | None = column(
        "why nothing is predicted, or what a prediction had to do without", over_runs="first"
    )

    @property
    def mark(self) -> str:
        """An exclamation mark where a figure lies outside of its interval."""
        return "!" if self.missed else ""


def beside(predicted: Predicted, made: Throughput, latency: Latency) -> Predicted:
    """The same with what came of it."""
    reached, said = made.output_throughput, predicted.output_throughput
    if not reached or said is None:
        return predicted
    ends = {
        "output_throughput": (predicted.output_throughput_ends, reached),
        "median_ttft_ms": (predicted.median_ttft_ms_ends, latency.ttft.median),
        "median_tpot_ms": (predicted.median_tpot_ms_ends, latency.tpot.median),
    }
    missed = [name for name, (found, value) in ends.items() if found.misses(value)]
    return replace(predicted, error_pct=100 * (said / reached - 1), missed=", ".join(missed))
