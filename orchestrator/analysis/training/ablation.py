"""What a technique does to training, by runs with another setting of it beside those as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean

from orchestrator.analysis.comparing.ablation import Sides, pairs_of, sides_of
from orchestrator.analysis.comparing.metrics import Figure
from orchestrator.analysis.comparing.rounds import by_round, completed, means
from orchestrator.analysis.training.observed import TrainedParts, by_cell, times_of
from orchestrator.analysis.training.rows import Trained
from orchestrator.store.schema import CellKey
from workers.rows import Table, column, group, grouped, row
from workers.units import is_cpu


@row
class TrainingEffect:
    """A cell with a change beside the same as it was asked for. The key is that of the changed one,
    and `ablation` says the change: "with it" is with that change, "without it" as asked."""

    cell: CellKey = group()
    num_starts: int = column("rounds that both have", "1")
    step_time: Sides = group("step_time_ms_{}", "step_time_ms", unit="ms")
    tokens_per_second: Sides = group("tokens_per_second_{}", "tokens_per_second", unit="tokens/s")
    peak_memory: Sides = group("peak_memory_bytes_{}", "peak_memory_bytes", unit="B")
    activation: Sides = group("activation_bytes_{}", "activation_bytes", unit="B")
    communication_calls: int | None = column(
        "calls of an optimizer step with it, of the rank with most", "1"
    )
    communication_calls_asked: int | None = column("the same as asked", "1")
    communication_bytes: int | None = column(
        "message sizes of an optimizer step with it, of the rank with most", "B"
    )
    communication_bytes_asked: int | None = column("the same as asked", "B")
    loss_difference: float | None = column(
        "loss of the last step with it, less that as asked; null without collectives, where it "
        "means nothing",
        "nat",
    )
    saved_pct: float | None = column(
        "what the step is shorter by with it; null where a loss is no number, as GPUs run at a "
        "higher clock on matrices of NaN",
        "%",
        formula="100 x (1 - with / as asked)",
    )
    saved_at_one_clock_pct: float | None = column(
        "without collectives: the same at the clock as asked, if a step takes as many cycles; a "
        "GPU that never waits draws more power, and a power limit then lowers its clock. Null "
        "where nothing runs on the GPUs in more than 5% of an observed step, as they then wait for "
        "the host, whatever their clock",
        "%",
        formula="100 - (100 - saved_pct) x sm_clock_mhz with / as asked, medians over samples",
        source="NVML",
    )
    exposed_pct: float | None = column(
        "without collectives: communication that the profile of the whole cell saw exposed, to "
        "which saved_pct is an independent check",
        "%",
    )


WAITS = 0.05  # of a step in which nothing runs
TRAINING_EFFECTS = Table("training_ablations", TrainingEffect)
STEP_TIME = Figure("step_time_ms", "ms", lambda run: run.rate.step_time_ms)
FIGURES = {
    "step_time": STEP_TIME,
    "tokens_per_second": Figure(
        "tokens_per_second", "tokens/s", lambda run: run.rate.tokens_per_second
    ),
    "peak_memory": Figure("peak_memory_bytes", "B", lambda run: run.memory.peak_memory_bytes),
    "activation": Figure("activation_bytes", "B", lambda run: run.memory.activation_bytes),
}


def training_effects(
    runs: Sequence[Trained],
    parts: Sequence[TrainedParts] = (),
    clocks: Mapping[CellKey, float] | None = None,
) -> list[TrainingEffect]:
    """A row for each cell and change of it, where both have a result. parts: of the cells that were
    observed. clocks: MHz of the GPUs in the runs of a cell."""
    seen = by_cell(parts)
    return [
        _effect(asked, changed, seen.get(asked[0].cell, ()), clocks or {})
        for asked, changed in pairs_of(completed(runs))
    ]


def without_result(runs: Sequence[Trained]) -> list[str]:
    """Why changed cells have no result, or none of time, a line each."""
    changed = grouped((run for run in runs if run.cell.ablation != "none"), lambda run: run.cell)
    reasons = ((cell.layout, _why_without(mine)) for cell, mine in changed.items())
    return [f"{layout} {reason}" for layout, reason in reasons if reason]


def _why_without(runs: Sequence[Trained]) -> str | None:
    done = completed(runs)
    if not done:
        return f"{runs[-1].status}: {runs[-1].reason}"
    if _is_sound(done):
        return None
    return "has a loss that is no number: on NaN a GPU's clock is higher, so its time says nothing"


def _is_sound(runs: Sequence[Trained]) -> bool:
    """Whether all losses are numbers."""
    losses = (run.result.loss for run in runs)
    return all(isfinite(loss) for loss in losses if loss is not None)


def _effect(
    asked: Sequence[Trained],
    changed: Sequence[Trained],
    parts: Sequence[TrainedParts],
    clocks: Mapping[CellKey, float],
) -> TrainingEffect:
    is_silent = changed[0].cell.ablation == "comm"
    sides = {name: sides_of(one, changed, asked) for name, one in FIGURES.items()}
    times = times_of(parts, is_cpu(asked[0].conditions.device_name))
    share = times.communication_exposed_share if is_silent else None
    saved = _saved(sides["step_time"]) if _is_sound(changed) else None
    losses = [_mean(runs, lambda run: run.result.loss) for runs in (changed, asked)]
    return TrainingEffect(
        cell=changed[0].cell,
        num_starts=len(by_round(asked).keys() & by_round(changed).keys()),
        communication_calls=changed[0].traffic.communication_calls,
        communication_calls_asked=asked[0].traffic.communication_calls,
        communication_bytes=changed[0].traffic.communication_bytes,
        communication_bytes_asked=asked[0].traffic.communication_bytes,
        loss_difference=None
        if is_silent or losses[0] is None or losses[1] is None
        else losses[0] - losses[1],
        saved_pct=saved,
        saved_at_one_clock_pct=_at_clock(
            saved, clocks.get(asked[0].cell), clocks.get(changed[0].cell)
        )
        if is_silent and not _waits_for_host(parts)
        else None,
        exposed_pct=None if share is None else 100.0 * share,
        **sides,
    )


def _saved(step: Sides) -> float | None:
    """From rounds that both have, or all where there are none."""
    if step.with_it is None or not step.without:
        return None
    return 100.0 * (1.0 - (step.with_it / step.without if step.ratio is None else step.ratio))


def _waits_for_host(parts: Sequence[TrainedParts]) -> bool:
    """Whether steps take other times than their GPUs' cycles do: there are gaps."""
    return bool(parts) and fmean(one.gap_ms / one.step_ms for one in parts) > WAITS


def _at_clock(saved: float | None, asked: float | None, changed: float | None) -> float | None:
    """Percent saved if the changed runs had had the clock of those as asked, in MHz."""
    if saved is None or asked is None or changed is None:
        return None
    return 100.0 - (100.0 - saved) * changed / asked


def _mean(runs: Sequence[Trained], of: Callable[[Trained], float | None]) -> float | None:
    found = means(runs, of).values()
    return fmean(found) if found else None
