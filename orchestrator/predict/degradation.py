"""How layouts fare as more requests are in flight, predicted, and the closed form through that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from orchestrator.analysis.degradation import Degradation, Point, fit
from orchestrator.predict.layouts import Candidates
from orchestrator.predict.load import Asked
from orchestrator.predict.passes import Setting
from orchestrator.predict.prediction import Prediction, predict

# Requests in flight that a curve is predicted at: `decay_pct` is from the first to the last.
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 100)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Of one layout, at as many of CONCURRENCIES as it serves all at once. full_at: the first one
    for which KV has no room; None: none of them."""

    layout: str
    points: tuple[Point, ...]
    full_at: int | None
    fitted: Degradation

    @property
    def sentence(self) -> str:
        """What it says; empty where no closed form is fitted."""
        said = self.fitted.sentence(self.points[-1].concurrency) if self.points else ""
        full = f"; KV has no room for {self.full_at}" if said and self.full_at else ""
        return said + full


def sweeps(found: Candidates, layouts: Iterable[str]) -> Iterator[Sweep]:
    """Of those of the candidates that `layouts` names, in that order. Each point is a closed batch,
    whatever number of requests is asked for."""
    placed = {layout.name: setting for layout, setting in found.settings}
    return (_sweep(name, placed[name], found.case.asked) for name in layouts)


def _sweep(name: str, setting: Setting, asked: Asked) -> Sweep:
    points, full_at, output_len = [], None, asked.lengths.output_len
    for concurrency in CONCURRENCIES:
        one = predict(setting, name, replace(asked, max_concurrency=concurrency, num_prompts=None))
        if not isinstance(one, Prediction):
            break
        if one.in_flight < concurrency:
            full_at = concurrency
            break
        points.append(_point(one, output_len))
    return Sweep(name, tuple(points), full_at, fit(points, output_len))


def _point(one: Prediction, output_len: int) -> Point:
    """Where nothing is said of the TTFT, it is what the other tokens leave of a request's time,
    which follows from the throughput by Little's law."""
    made, each = one.output_throughput.value, one.tpot_ms.value
    whole = 1e3 * output_len * one.max_concurrency / made
    first = one.ttft_ms.value if one.ttft_ms else whole - (output_len - 1) * each
    return Point(one.max_concurrency, made, first, each)
