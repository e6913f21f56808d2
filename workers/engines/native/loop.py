"""The generate loop of one rank: steps in turn, tokens back from the last stage, times and counts
reported at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from workers.communicator import Communicator
from workers.device import peak_memory, reset_peak
from workers.engines.native.arrivals import Arrivals, replica_group
from workers.engines.native.runner import Runner
from workers.engines.native.scheduler import Scheduler, Sequence, Step
from workers.messages import RankReport, Work
from workers.probes.probe import Probe, probe_for
from workers.records import COLLECTIVES, REQUESTS, STEPS, CollectiveRow, RequestRow, StepRow

Mark = torch.cuda.Event | float
RUN_AHEAD = (
    2  # steps that the host may be ahead of the device where the clock decides who is let in
)
SLEEP_CYCLES_PER_SECOND = (
    1.98e9  # an H200's clock under load; a delay is an injected disturbance, not a measure
)


class Clock:
    """Moments on the device's own time line: events on a GPU, so that nothing waits; the host's
    clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._zero = self.mark()
        self.began_s = time.perf_counter()

    def mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def now(self) -> float:
        """Seconds from the start of the clock, on the host."""
        return time.perf_counter() - self.began_s

    def keep_up(self, marks: list[Mark]) -> None:
        """Wait until the device is no more than RUN_AHEAD steps behind the host."""
        mark = marks[-RUN_AHEAD] if len(marks) >= RUN_AHEAD else None
        if isinstance(mark, torch.cuda.Event):
            mark.synchronize()

    def seconds(self, mark: Mark) -> float:
        """Seconds from the start of the clock; on a GPU the mark must have passed."""
        if isinstance(mark, float):
            assert isinstance(self._zero, float)
            return mark - self._zero
        assert isinstance(self._zero, torch.cuda.Event)
        return self._zero.elapsed_time(mark) / 1e3


@dataclass(frozen=True, slots=True)
class Pending:
    """A step whose tokens have been sampled but not been fetched; `tokens` is None where they are
    still to be received."""

    step: Step
    tokens: Tensor | None


@dataclass(slots=True)
class Log:
    """What happened, step by step; `tokens` only where they are reported, as copies that are
    complete when `marks` have passed."""

    steps: list[Step] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    tokens: list[Tensor | None] = field(default_factory=list)


class Generator:
    """Serves loops on one rank. Every rank of a replica takes the same steps; in a closed loop
    without a word between them."""

    def __init__(
        self,
        runner: Runner,
        communicator: Communicator,
        micro_batches: int,
        pages: int,
        prefill_tokens: int,
        chunked: bool,
        eos: Iterable[int],
    ) -> None:
        self._runner, self._communicator = runner, communicator
        self._micro_batches, self._pages, self._prefill_tokens, self._chunked = (
            micro_batches,
            pages,
            prefill_tokens,
            chunked,
        )
        self._eos = frozenset(eos)
        context = communicator.context
        self._device = context.device
        self._replica = context.at("dp")
        self._piped = context.placement.degree("pp") > 1
        self._first, self._last = context.is_first_stage, context.is_last_stage
        axes = [axis for axis, _ in context.placement.mesh if axis not in ("dp", "pp")]
        self._together: tuple[dist.ProcessGroup | None, int] | None = (
            None  # for open loops, made by the first
        )
        self._reports = self._last and all(context.at(axis) == 0 for axis in axes)

    def run(self, work: Work) -> RankReport:
        """Serve this rank's share of `work`."""
        communicator = self._communicator
        share = work.share(self._replica, communicator.context.placement.degree("dp"))
        scheduler = Scheduler(
            share.requests,
            share.max_concurrency,
            self._micro_batches,
            self._pages,
            self._prefill_tokens,
            self._chunked,
        )
        probe = probe_for(work.observe, self._device, communicator)
        communicator.reset()
        if work.is_open and self._together is None:
            self._together = replica_group(communicator.context)
        reset_peak([self._device])
        with probe.watching():
            communicator.barrier()
            self._synchronize()
            clock, log = Clock(self._device), Log()
            communicator.context.progress.begin(clock.mark(), self._pages, self._reports)
            self._loop(
                scheduler,
                probe,
                clock,
                log,
                share,
                self._arrivals(share, clock) if work.is_open else None,
            )
            communicator.flush()
            self._synchronize()
        return RankReport(
            rank=communicator.context.rank,
            requests=self._requests(log, clock) if self._reports else None,
            steps=self._steps(log, clock),
            collectives=self._collectives(),
            peak_memory_bytes=peak_memory([self._device]),
            spans=probe.spans(),
            began_s=clock.began_s,
        )

    # -- the loop

    def _loop(
        self,
        scheduler: Scheduler,
        probe: Probe,
        clock: Clock,
        log: Log,
        work: Work,
        arrivals: Arrivals | None,
    ) -> None:
        pending: deque[Pending] = deque()
        heed_eos, progress = (
            not (work.ignore_eos or work.observe),
            self._communicator.context.progress,
        )
        ranges = self._communicator.context.ranges
        while True:
            if arrivals is not None:
                arrivals.tell(scheduler, lambda: clock.keep_up(log.marks))
            micro_batch = scheduler.next_micro_batch()
            if micro_batch is None:
                break
            if heed_eos:
                self._fetch(pending, micro_batch, heed_eos)
            step = scheduler.plan(micro_batch)
            if step is None:
                continue
            with (
                probe.step(step.phase, step.index),
                ranges.span("{} step {} micro_batch {}", step.phase, step.index, step.micro_batch),
            ):
                if step.phase == "decode":
                    self._fetch(pending, micro_batch, heed_eos)
                self._communicator.phase = step.phase
                self._hold_up(work.delay)
                tokens = self._runner.run(step)
                self._pass_on(step, tokens, pending, heed_eos)
                log.steps.append(step)
                log.tokens.append(self._copy(tokens))
                log.marks.append(mark := clock.mark())
            progress.step(mark, step.phase, len(step.sampled), *scheduler.held())
        self._fetch(pending, None, heed_eos)

    def _arrivals(self, share: Work, clock: Clock) -> Arrivals:
        assert self._together is not None
        group, source = self._together
        return Arrivals(
            share.requests, clock.now, source == self._communicator.context.rank, source, group
        )

    def _pass_on(
        self, step: Step, tokens: Tensor | None, pending: deque[Pending], heed_eos: bool
    ) -> None:
        if not step.sampled:
            return
        if self._piped and self._last:
            assert tokens is not None
            self._communicator.broadcast_last(tokens)
        if heed_eos or (self._piped and not self._last):
            pending.append(Pending(step, tokens))

    def _fetch(self, pending: deque[Pending], micro_batch: int | None, heed_eos: bool) -> None:
        """Fetch the tokens of every step up to the newest one of `micro_batch` (None = all), in the
        order they were sampled."""
        count = (
            len(pending)
            if micro_batch is None
            else max(
                (i + 1 for i, p in enumerate(pending) if p.step.micro_batch == micro_batch),
                default=0,
            )
        )
        for _ in range(count):
            step, tokens = (item := pending.popleft()).step, item.tokens
            if tokens is None:
                self._communicator.phase = step.phase
                tokens = torch.empty(len(step.sampled), dtype=torch.int64, device=self._device)
                self._communicator.broadcast_last(tokens)
                if self._first:
                    self._runner.set_tokens(step.sampled, tokens)
            if heed_eos:
                for sequence, token in zip(step.sampled, tokens.tolist(), strict=True):
                    sequence.stopped |= token in self._eos

    def _copy(self, tokens: Tensor | None) -> Tensor | None:
        """Sampled tokens on the host, without waiting for them."""
        if tokens is None or not self._reports:
            return None
        if self._device.type == "cpu":
            return tokens
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        return host.copy_(tokens, non_blocking=True)

    def _hold_up(self, delay: tuple[int, float] | None) -> None:
        """Do nothing for the seconds of `delay` if it is meant for this rank; on a GPU, on the
        GPU."""
        if delay is None or delay[0] != self._communicator.context.rank:
            return
        if self._device.type == "cpu":
            time.sleep(delay[1])
        else:
            torch.cuda._sleep(int(delay[1] * SLEEP_CYCLES_PER_SECOND))

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    # -- the report

    def _requests(self, log: Log, clock: Clock) -> pa.Table:
        times: dict[Sequence, list[float]] = {}
        tokens: dict[Sequence, list[int]] = {}
        for step, mark, sampled in zip(log.steps, log.marks, log.tokens, strict=True):
            if sampled is None:
                continue
            at = clock.seconds(mark)
            for sequence, token in zip(step.sampled, sampled.tolist(), strict=True):
                times.setdefault(sequence, []).append(at)
                tokens.setdefault(sequence, []).append(token)
        return REQUESTS.make(
            RequestRow(
                request_index=sequence.request.index,
                replica=self._replica,
                input_len=len(sequence.request.prompt),
                output_len=len(tokens[sequence]),
                arrival_s=self._arrival(sequence, times),
                admitted_s=sequence.admitted_s,
                token_times_s=times[sequence],
                output_token_ids=tokens[sequence],
            )
            for sequence in sorted(tokens, key=lambda s: s.request.index)
        )

    def _arrival(self, sequence: Sequence, times: dict[Sequence, list[float]]) -> float:
        """In an open loop when it was scheduled to come; in a closed one when the one before it had
        ended."""
        if sequence.admitted_s is not None:
            return sequence.request.arrival_s
        return times[sequence.after][-1] if sequence.after else 0.0

    def _steps(self, log: Log, clock: Clock) -> pa.Table:
        return STEPS.make(
            StepRow(
                rank=self._communicator.context.rank,
                step=step.index,
                phase=step.phase,
                micro_batch=step.micro_batch,
                num_requests=step.num_requests,
                num_tokens=step.num_tokens,
                end_s=clock.seconds(mark),
            )
            for step, mark in zip(log.steps, log.marks, strict=True)
        )

    def _collectives(self) -> pa.Table:
        communicator = self._communicator
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
