"""What is left of a throughput where GPUs fail and differ in pace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from orchestrator.predict.prediction import Prediction
from strategies import parse

HOUR_S, DAY_S = 3600.0, 86400.0
# Unexpected interruptions of a job for each hour of a GPU: 419 in 54 days of 16,384 H100. "The
# Llama 3 Herd of Models", 2024, section 3.3.4 and table 5.
FAILURES = 419 / (54 * 24 * 16384)
RECOVERY_S = 600.0  # an assumption: to notice, to find another GPU, to start and to load weights
SPREAD = 0.01  # an assumption: between equal GPUs, of the time of a step
FITTED_RANKS = 2  # whose slowest one is in what was fitted: tp2 and pp2


@dataclass(frozen=True, slots=True)
class Reliability:
    """failures: of a GPU and hour, that stop the replica that it is of. recovery_s: until that
    serves again. spread: standard deviation of the times that equal GPUs take, as a share."""

    failures: float = FAILURES
    recovery_s: float = RECOVERY_S
    spread: float = SPREAD

    def sources(self) -> Iterator[str]:
        """Each figure, and where it comes from."""
        default = Reliability()
        asked = "as asked"
        paper = "Llama 3, 419 in 54 days of 16,384 GPUs" if self.failures == FAILURES else asked
        yield f"{self.failures:.3g} failures a GPU-hour ({paper})"
        recovery = "assumed" if self.recovery_s == default.recovery_s else asked
        yield f"{self.recovery_s:g} s to recover ({recovery})"
        spread = "assumed" if self.spread == default.spread else asked
        yield f"{100 * self.spread:g}% between GPUs ({spread})"


@dataclass(frozen=True, slots=True)
class Goodput:
    """output_throughput: tokens/s of requests that end. available: share of the time in which a
    replica makes such tokens. pace: of the slowest GPU of a group, over that of a group as fitted.
    failures_per_day: of all GPUs."""

    output_throughput: float
    available: float
    pace: float
    failures_per_day: float


def goodput(one: Prediction, output_len: int, given: Reliability) -> Goodput:
    """Throughput x available / pace; of an open loop that of a closed one, and at most what
    arrives: below saturation requests wait longer, and as many end.

    A failure stops the replica of its GPU, of g GPUs; the others go on. It serves again after
    `recovery_s`, and makes once more what its requests had made, half of their time on average. So
    with the mean time between failures M = 1 / (failures x g), it is available for M of M +
    recovery + half a request: a renewal process; as in the effective training time ratio of Kokolis
    et al., HPCA 2025, without checkpoints. A request takes in flight / requests a second (Little).

    The ranks of a replica wait for each other, so they go at the pace of the slowest of g: with
    equal normal times, 1 + spread x E[greatest of g], by Blom's approximation (1958). Replicas do
    not wait for each other.
    """
    replicas = dict(parse(one.layout)).get("dp", 1)
    ranks, made = one.num_gpus // replicas, one.output_throughput.value
    request_s = one.in_flight * output_len / made
    lost_s = given.recovery_s + request_s / 2
    available = 1 / (1 + given.failures * ranks * lost_s / HOUR_S)
    pace = max(_slowest(ranks, given.spread) / _slowest(FITTED_RANKS, given.spread), 1.0)
    failures = given.failures * one.num_gpus * DAY_S / HOUR_S
    most = one.closed_output_throughput or made
    return Goodput(min(made, most * available / pace), available, pace, failures)


def _slowest(ranks: int, spread: float) -> float:
    """The expected time of the slowest of so many, over their mean."""
    greatest = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0
    return 1 + spread * greatest
