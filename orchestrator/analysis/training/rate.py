"""How fast runs train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from strategies.training import bubble_share, micro_batches, model_flops_utilization
from workers.messages import EnginePlan
from workers.rows import column, row
from workers.training_records import TrainingStepRow


@row
class TrainingRate:
    """How fast a run trained. The first step, which allocates and tunes, counts for nothing, and so
    does the first one after the run went on from a state."""

    tokens_per_second: float | None = column(
        "tokens trained on per second of all replicas, from the end of the first step on",
        "tokens/s",
        formula="timed steps x global_batch_size x seq_len / their seconds",
        over_runs="mean",
        better="higher",
    )
    tokens_per_second_per_gpu: float | None = column(
        "the same over the devices of the layout", "tokens/s", over_runs="mean", better="higher"
    )
    step_time_ms: float | None = column(
        "mean time of an optimizer step", "ms", over_runs="mean", better="lower"
    )
    model_flops_utilization: float | None = column(
        "arithmetic of the model over what the devices' data sheet allows: recomputation not "
        "counted, causal attention once; null where there is no data sheet",
        "1",
        source="Chowdhery et al. 2022, appendix B",
        over_runs="mean",
        better="higher",
    )
    bubble_share: float | None = column(
        "share of a step that a rank of the pipeline waits by its schedule alone, where all stages "
        "take equally long; not measured",
        "1",
        source="Narayanan et al. 2021",
        over_runs="first",
    )


def rate_of(plan: EnginePlan, steps: Sequence[TrainingStepRow], peak: float | None) -> TrainingRate:
    """How fast the steps of a run were. peak: operations/s of one device by its data sheet; None
    where that is unknown."""
    asked = plan.training
    ranks, stages = plan.placement.num_ranks, plan.placement.degree("pp")
    assert asked is not None, "the plan trains"
    times = _step_times(steps)
    rate = asked.tokens * len(times) / sum(times) if times else None
    count = micro_batches(plan.placement, asked)
    bubble = bubble_share(asked.schedule, stages, count, asked.chunks) if stages > 1 else None
    return TrainingRate(
        tokens_per_second=rate,
        tokens_per_second_per_gpu=rate / ranks if rate else None,
        step_time_ms=1e3 * sum(times) / len(times) if times else None,
        model_flops_utilization=None
        if peak is None or rate is None
        else model_flops_utilization(plan.model, asked.seq_len, rate, ranks, peak),
        bubble_share=bubble,
    )


def _step_times(steps: Sequence[TrainingStepRow]) -> list[float]:
    """Seconds of each step but the first one, and the first one after the run was stopped."""
    pairs = itertools.pairwise(steps)
    return [after.end_s - before.end_s for before, after in pairs if not after.resumed]
