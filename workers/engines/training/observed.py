"""An optimizer step taken apart: of one rank, from what was seen of it to rows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from strategies.placement import Placement
from workers.intervals import Span, length, subtract, union
from workers.training_records import TrainingOverlapRow, TrainingPartsRow

PARTS = ("forward", "backward", "optimizer", "other")
HANDOVERS = frozenset({"send", "recv", "send_recv"})


@dataclass(frozen=True, slots=True)
class SeenCall:
    """A call that communicates. axis: None where it is not known. agrees: it is of the figures that
    ranks tell each other, as the loss, and not of the layout. spans: when it was under way, in us;
    empty where it was not seen. ends: whether its end is told; else spans are when it was waited
    for."""

    op: str
    axis: str | None
    spans: Sequence[Span]
    agrees: bool = False
    ends: bool = True


@dataclass(frozen=True, slots=True)
class SeenStep:
    """An optimizer step of a rank, in us. computing: by part of PARTS, perhaps overlapping. moved:
    copies between device and main memory; None where the device is the host."""

    window: Span
    computing: Mapping[str, Sequence[Span]]
    calls: Sequence[SeenCall]
    moved: Sequence[Span] | None = None

    @property
    def computes(self) -> list[Span]:
        """When anything computes."""
        return union(span for spans in self.computing.values() for span in spans)


def parts_of(
    rank: int, placement: Placement, steps: Sequence[SeenStep], timed_s: Sequence[float]
) -> TrainingPartsRow:
    """The row of a rank. timed_s: seconds of steps that were not profiled."""
    booked = [_booked(step) for step in steps]
    means = {f"{name}_ms": fmean(one[name] for one in booked) / 1e3 for name in booked[0]}
    is_piped = placement.degree("pp") > 1
    bubble_ms = means["handover_ms"] + means["agreement_ms"] if is_piped else None
    piped_ms = means["step_ms"] - means["optimizer_ms"]
    timed_ms = 1e3 * median(timed_s)
    numbers = enumerate(placement.stages)
    return TrainingPartsRow(
        rank=rank,
        stages=tuple(i for i, stage in numbers if stage in placement.stages_of(rank)),
        steps=len(steps),
        bubble_ms=bubble_ms,
        bubble_share=None if bubble_ms is None else bubble_ms / piped_ms,
        host_copy_ms=_host_copy_ms(steps),
        timed_step_ms=timed_ms,
        profile_ratio=median(length([step.window]) for step in steps) / 1e3 / timed_ms,
        reason=_unknown(steps),
        **means,
    )


def _host_copy_ms(steps: Sequence[SeenStep]) -> float | None:
    copies = [step.moved for step in steps if step.moved is not None]
    return fmean(length(union(one)) for one in copies) / 1e3 if copies else None


def overlaps_of(rank: int, steps: Sequence[SeenStep]) -> list[TrainingOverlapRow]:
    """A row for each operation and axis of the layout."""
    keys = sorted(
        {(call.op, call.axis) for step in steps for call in step.calls if not call.agrees},
        key=lambda key: (key[0], key[1] or ""),
    )
    return [_overlap(rank, op, axis, steps) for op, axis in keys]


def _booked(step: SeenStep) -> dict[str, float]:
    """Microseconds of each part of a step, each stretch of it in the first one that fits."""
    of_layout = [call for call in step.calls if not call.agrees]
    collectives = _when(call for call in of_layout if call.op not in HANDOVERS)
    in_order = {
        **{part: step.computing.get(part, ()) for part in ("backward", *PARTS)},
        "exposed": collectives,
        "handover": _when(call for call in of_layout if call.op in HANDOVERS),
        "agreement": _when(call for call in step.calls if call.agrees),
        "gap": [step.window],
    }
    left, booked = [step.window], {"step": length([step.window])}
    for part, spans in in_order.items():
        rest = subtract(left, union(spans))
        booked[part] = length(left) - length(rest)
        left = rest
    return booked | {"busy": length(collectives)}


def _overlap(rank: int, op: str, axis: str | None, steps: Sequence[SeenStep]) -> TrainingOverlapRow:
    mine = [[one for one in step.calls if _is_of(one, op, axis)] for step in steps]
    every = [one for calls in mine for one in calls]
    spans = [_when(calls) for calls in mine]
    alone = [subtract(one, step.computes) for one, step in zip(spans, steps, strict=True)]
    is_seen = all(one.spans or not one.ends for one in every)
    exposed = fmean(map(length, alone)) / 1e3 if is_seen else None
    busy = fmean(map(length, spans)) / 1e3 if all(one.ends for one in every) and is_seen else None
    return TrainingOverlapRow(
        rank=rank,
        op=op,
        axis=axis,
        seen_calls=fmean(sum(bool(one.spans) or not one.ends for one in calls) for calls in mine),
        busy_ms=busy,
        exposed_ms=exposed,
        hidden_ms=None if busy is None or exposed is None else busy - exposed,
    )


def _is_of(call: SeenCall, op: str, axis: str | None) -> bool:
    return not call.agrees and (call.op, call.axis) == (op, axis)


def _when(calls: Iterable[SeenCall]) -> list[Span]:
    return union(span for call in calls for span in call.spans)


def _unknown(steps: Sequence[SeenStep]) -> str | None:
    """What is not known of the calls of the steps; None where all is."""
    of_layout = [call for step in steps for call in step.calls if not call.agrees]
    lacking = {
        "the group of {} is not told": [call.op for call in of_layout if call.axis is None],
        "the end of {} is not told": [call.op for call in of_layout if not call.ends],
        "not every {} was seen": [call.op for call in of_layout if call.ends and not call.spans],
    }
    said = [line.format(op) for line, ops in lacking.items() for op in dict.fromkeys(ops)]
    return "; ".join(said) or None
