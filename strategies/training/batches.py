"""How the batch of an optimizer step is dealt out, and which batches a pipeline can take."""

from __future__ import annotations

from strategies.errors import LayoutError
from strategies.placement import Placement
from strategies.shapes import TrainingLoad


def micro_batches(placement: Placement, load: TrainingLoad) -> int:
    """Micro-batches that each replica computes in an optimizer step: of a pipeline those that are
    in flight, else the steps of gradient accumulation.

    Raises LayoutError where the global batch does not divide.
    """
    at_once = load.micro_batch_size * placement.num_replicas
    if load.global_batch_size < 1 or load.micro_batch_size < 1 or load.global_batch_size % at_once:
        raise LayoutError(_undivided(placement, load))
    return load.global_batch_size // at_once


def check_batches(placement: Placement, load: TrainingLoad) -> str | None:
    """A warning about the batches that `placement` is given, or None.

    Raises LayoutError where it cannot train on them: a batch that does not divide, and
    micro-batches that the schedule refuses (`Schedule1F1B` and `ScheduleInterleaved1F1B` of
    torch.distributed.pipelining).
    """
    count, ranks = micro_batches(placement, load), placement.degree("pp")
    if ranks == 1:
        return None
    if load.schedule == "interleaved":
        _check_rounds(count, ranks, placement, load)
    if count >= ranks:
        return None
    few = f"{count} micro-batch{'es' if count > 1 else ''} {'are' if count > 1 else 'is'} fewer"
    can_shrink = load.micro_batch_size > 1
    if load.schedule == "1f1b":
        least = ranks * load.micro_batch_size * placement.num_replicas
        raise LayoutError(
            f"{few} than the {ranks} stages, which the schedule 1f1b needs; use a global batch "
            f"size of {least} or more{', a smaller micro-batch' if can_shrink else ''}, or "
            "--schedule gpipe"
        )
    bubble = bubble_share(load.schedule, ranks, count, load.chunks)
    return (
        f"{few} than the {ranks} ranks of the pipeline: {bubble:.0%} of a step is bubble; a larger "
        f"global batch{' or a smaller micro-batch' if can_shrink else ''} makes it less"
    )


def bubble_share(schedule: str, ranks: int, micro_batches: int, stages_per_rank: int = 1) -> float:
    """The share, 0 to 1, of an optimizer step that a rank of a pipeline waits, where all stages
    take equally long and sending takes no time.

    With p ranks and m micro-batches, GPipe and 1F1B wait for p - 1 micro-batches: (p - 1) / m of
    the time that computing takes, (p - 1) / (m + p - 1) of the step. Interleaved, with v stages a
    rank, they wait for a v-th of that (Narayanan et al., arXiv:2104.04473, sections 2.2.1, 2.2.2).
    """
    chunks = stages_per_rank if schedule == "interleaved" else 1
    waiting = (ranks - 1) / chunks
    return waiting / (micro_batches + waiting)


def _check_rounds(count: int, ranks: int, placement: Placement, load: TrainingLoad) -> None:
    """Interleaved 1F1B goes in rounds of as many micro-batches as there are ranks, or a few more;
    all rounds have equally many."""
    if _in_rounds(count, ranks):
        return
    at_once = load.micro_batch_size * placement.num_replicas
    below = next(fewer for fewer in range(count, 0, -1) if _in_rounds(fewer, ranks))
    above = next(more for more in range(count, count + ranks) if _in_rounds(more, ranks))
    raise LayoutError(
        f"{count} micro-batches are no multiple of the {count // ranks} rounds that the schedule "
        f"interleaved makes of them over pp={ranks}; use a global batch size of "
        f"{below * at_once} or {above * at_once}"
    )


def _in_rounds(count: int, ranks: int) -> bool:
    return count % max(1, count // ranks) == 0


def _undivided(placement: Placement, load: TrainingLoad) -> str:
    """Why the global batch cannot be dealt out, and which would do."""
    batch, micro, replicas = load.global_batch_size, load.micro_batch_size, placement.num_replicas
    if batch < 1 or micro < 1:
        return (
            f"a global batch of {batch} and a micro-batch of {micro} sequences; use 1 or more of "
            "each"
        )
    at_once = micro * replicas
    below = batch // at_once * at_once
    which = f"{below} or {below + at_once}" if below else f"{at_once}"
    said = f"a global batch of {batch} sequences does not divide over {replicas} replica"
    line = f"{said}{'s' if replicas > 1 else ''} of micro-batch size {micro}; use {which}"
    if batch % replicas:
        return line
    fitting = ", ".join(str(size) for size in range(1, micro) if batch // replicas % size == 0)
    return f"{line}, or a micro-batch size of {fitting}" if fitting else line
