"""The record of a run, step by step, and the tables that are made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from workers.clock import Clock, Moment
from workers.engines.native.scheduler import Sequence, Step
from workers.records import COLLECTIVES, REQUESTS, STEPS, CollectiveRow, RequestRow, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from workers.communicator import Communicator


@dataclass(slots=True)
class Log:
    """The steps of a run, and of each the moment of its end and its sampled tokens.

    tokens: [sampled] int64 on the host, complete once the step's mark has passed; None on a rank
    that does not report them.
    """

    steps: list[Step] = field(default_factory=list)
    marks: list[Moment] = field(default_factory=list)
    tokens: list[Tensor | None] = field(default_factory=list)

    def add(self, step: Step, tokens: Tensor | None, mark: Moment) -> None:
        """Keep a step that has been launched."""
        self.steps.append(step)
        self.tokens.append(tokens)
        self.marks.append(mark)


@dataclass(slots=True)
class _Output:
    """The tokens of a request, and the time of each."""

    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


def requests_table(log: Log, clock: Clock, replica: int) -> pa.Table:
    """REQUESTS of a replica, by request index; after the run, when every mark has passed."""
    outputs = _outputs(log, clock)
    return REQUESTS.make(
        _request_row(sequence, outputs, replica)
        for sequence in sorted(outputs, key=lambda s: s.request.index)
    )


def _request_row(sequence: Sequence, outputs: dict[Sequence, _Output], replica: int) -> RequestRow:
    request, made, admitted = sequence.request, outputs[sequence], sequence.admitted_s
    arrival = _arrival(sequence, outputs)
    return RequestRow(
        request_index=request.index,
        replica=replica,
        input_len=len(request.prompt),
        cached_tokens=0,  # every prompt is read from its beginning
        output_len=len(made.tokens),
        arrival_s=arrival,
        # The host, which lets it in, may be a step ahead of the reply that it is after.
        admitted_s=None if admitted is None else max(admitted, arrival),
        token_times_s=made.times_s,
        output_token_ids=made.tokens,
    )


def _outputs(log: Log, clock: Clock) -> dict[Sequence, _Output]:
    outputs: dict[Sequence, _Output] = {}
    for sequence, token, at in _sampled(log, clock):
        output = outputs.setdefault(sequence, _Output())
        output.tokens.append(token)
        output.times_s.append(at)
    return outputs


def _sampled(log: Log, clock: Clock) -> Iterator[tuple[Sequence, int, float]]:
    """Each token in order: its sequence, its id, and the time at which it was made, in seconds."""
    for step, mark, tokens in zip(log.steps, log.marks, log.tokens, strict=True):
        if tokens is not None:
            at = clock.seconds(mark)
            for sequence, token in zip(step.sampled, tokens.tolist(), strict=True):
                yield sequence, token, at


def _arrival(sequence: Sequence, outputs: dict[Sequence, _Output]) -> float:
    """The arrival of a request: as scheduled in an open loop, and in a closed one the end of the
    sequence that had the seat before; not before the reply that it is after has ended."""
    seat = sequence.after if sequence.admitted_s is None else None
    ends = [outputs[one].times_s[-1] for one in (seat, sequence.reply) if one is not None]
    return max([sequence.request.arrival_s, *ends])


def steps_table(log: Log, clock: Clock, rank: int) -> pa.Table:
    """STEPS of a rank."""
    return STEPS.make(
        StepRow(
            rank=rank,
            step=step.index,
            phase=step.phase,
            micro_batch=step.micro_batch,
            num_requests=step.num_requests,
            num_tokens=step.num_tokens,
            end_s=clock.seconds(mark),
        )
        for step, mark in zip(log.steps, log.marks, strict=True)
    )


def collectives_table(communicator: Communicator) -> pa.Table:
    """COLLECTIVES of a rank, as its communicator has counted them."""
    return COLLECTIVES.make(
        CollectiveRow(
            rank=communicator.context.rank,
            phase=phase,
            op=op,
            axis=axis,
            calls=calls,
            bytes=communicator.bytes[phase, op, axis],
        )
        for (phase, op, axis), calls in sorted(communicator.calls.items())
    )
