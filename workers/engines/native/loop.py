"""The generate loop of one rank: steps in turn, tokens back from the last stage, and the report."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workers.clock import Clock
from workers.communicator import Communicator
from workers.device import peak_memory, reset_peak, synchronize
from workers.engines.native.arrivals import Arrivals, replica_group
from workers.engines.native.log import Log, collectives_table, requests_table, steps_table
from workers.engines.native.runner import Runner
from workers.engines.native.scheduler import Limits, Scheduler, Step
from workers.messages import RankReport, Work
from workers.probes.probe import Probe, probe_for
from workers.records import DECODE

# Steps that the host may be ahead of the device where the clock decides who is let in.
RUN_AHEAD = 2
# An H200's clock under load; a delay is an injected disturbance, not a measure.
SLEEP_CYCLES_PER_SECOND = 1.98e9


class Pending(NamedTuple):
    """A step whose sampled tokens have not been fetched. tokens: [sampled] int64, None where they
    are still to be received."""

    step: Step
    tokens: Tensor | None


@dataclass(slots=True)
class Run:
    """One run of this rank. work: its replica's share. arrivals: None in a closed loop. pending:
    steps whose tokens are still to be fetched, oldest first."""

    work: Work
    scheduler: Scheduler
    probe: Probe
    clock: Clock
    log: Log
    arrivals: Arrivals | None
    pending: deque[Pending] = field(default_factory=deque)

    @property
    def stops_at_eos(self) -> bool:
        """Whether a sequence ends at an end-of-text token. An observed run goes on, as it must not
        wait for its tokens."""
        return not (self.work.ignore_eos or self.work.observe)

    def unfetched(self, micro_batch: int | None) -> int:
        """Pending steps up to the newest one of `micro_batch`; None: all."""
        if micro_batch is None:
            return len(self.pending)
        of_it = (i + 1 for i, p in enumerate(self.pending) if p.step.micro_batch == micro_batch)
        return max(of_it, default=0)


class Generator:
    """Serves runs on one rank. Every rank of a replica takes the same steps; in a closed loop they
    exchange no messages to agree on them."""

    def __init__(
        self, runner: Runner, communicator: Communicator, limits: Limits, eos: Iterable[int]
    ) -> None:
        self._runner, self._communicator, self._limits = runner, communicator, limits
        self._eos = frozenset(eos)
        context = communicator.context
        self._device, self._replica = context.device, context.at("dp")
        self._piped = context.placement.degree("pp") > 1
        self._first, self._last = context.is_first_stage, context.is_last_stage
        inner = [axis for axis, _ in context.placement.mesh if axis not in ("dp", "pp")]
        self._reports = self._last and all(context.at(axis) == 0 for axis in inner)
        # Made by the first open loop.
        self._replica_group: tuple[dist.ProcessGroup | None, int] | None = None

    def run(self, work: Work) -> RankReport:
        """Serve this rank's share of `work`. Raises ValueError where a request can never fit."""
        communicator, context = self._communicator, self._communicator.context
        share = work.share(self._replica, context.placement.degree("dp"))
        scheduler = Scheduler(share.requests, share.max_concurrency, self._limits)
        probe = probe_for(work.observe, self._device, communicator)
        communicator.reset()
        reset_peak([self._device])
        if work.is_open and self._replica_group is None:
            self._replica_group = replica_group(context)
        with probe.watching():
            communicator.barrier()
            synchronize(self._device)
            clock, log = Clock(self._device), Log()
            run = Run(share, scheduler, probe, clock, log, self._arrivals(work, share, clock))
            context.progress.begin(clock.start, self._limits.pages, self._reports)
            self._loop(run)
            communicator.flush()
            synchronize(self._device)
        return self._report(run)

    def _arrivals(self, work: Work, share: Work, clock: Clock) -> Arrivals | None:
        """work: of the whole layout, where a share may be empty."""
        if not work.is_open:
            return None
        assert self._replica_group is not None
        group, source = self._replica_group
        decides = source == self._communicator.context.rank
        return Arrivals(share.requests, clock.now, decides, source, group)

    def _report(self, run: Run) -> RankReport:
        rank, clock = self._communicator.context.rank, run.clock
        requests = requests_table(run.log, clock, self._replica) if self._reports else None
        return RankReport(
            rank=rank,
            requests=requests,
            steps=steps_table(run.log, clock, rank),
            collectives=collectives_table(self._communicator),
            peak_memory_bytes=peak_memory([self._device]),
            spans=run.probe.spans(),
            began_s=clock.began_s,
        )

    # -- the loop

    def _loop(self, run: Run) -> None:
        while (micro_batch := self._next_micro_batch(run)) is not None:
            if run.stops_at_eos:
                self._fetch(run, micro_batch)
            step = run.scheduler.next_step(micro_batch)
            if step is not None:
                self._take(run, step)
        self._fetch(run, None)

    def _next_micro_batch(self, run: Run) -> int | None:
        if run.arrivals is not None:
            run.arrivals.tell(run.scheduler, lambda: run.clock.keep_up(run.log.marks, RUN_AHEAD))
        return run.scheduler.next_micro_batch()

    def _take(self, run: Run, step: Step) -> None:
        """One step: what it needs is fetched, its work launched, its tokens passed on."""
        context, at = self._communicator.context, (step.phase, step.index, step.micro_batch)
        with (
            run.probe.step(step.phase, step.index),
            context.ranges.span("{} step {} micro-batch {}", *at),
        ):
            if step.phase == DECODE:
                self._fetch(run, step.micro_batch)
            self._communicator.phase = step.phase
            self._hold_up(run.work.delay)
            tokens = self._runner.run(step)
            self._pass_on(run, step, tokens)
            copy = self._copy(tokens)  # before the mark, so that it is complete when that passes
            mark = run.clock.mark()
            run.log.add(step, copy, mark)
        context.progress.step(mark, step.phase, len(step.sampled), *run.scheduler.held())

    def _pass_on(self, run: Run, step: Step, tokens: Tensor | None) -> None:
        """Send sampled tokens from the last stage to the others, and note what is to be fetched."""
        if not step.sampled:
            return
        if self._piped and self._last:
            assert tokens is not None
            self._communicator.broadcast_last(tokens)
        if run.stops_at_eos or (self._piped and not self._last):
            run.pending.append(Pending(step, tokens))

    def _fetch(self, run: Run, micro_batch: int | None) -> None:
        """Fetch the tokens of every step up to the newest one of `micro_batch` (None: all), in the
        order in which they were sampled."""
        for _ in range(run.unfetched(micro_batch)):
            step, tokens = run.pending.popleft()
            tokens = self._received(step) if tokens is None else tokens
            if run.stops_at_eos:
                for sequence, token in zip(step.sampled, tokens.tolist(), strict=True):
                    sequence.stopped |= token in self._eos

    def _received(self, step: Step) -> Tensor:
        """The tokens of a step from the last stage."""
        self._communicator.phase = step.phase
        tokens = torch.empty(len(step.sampled), dtype=torch.int64, device=self._device)
        self._communicator.broadcast_last(tokens)
        if self._first:
            self._runner.set_tokens(step.sampled, tokens)
        return tokens

    def _copy(self, tokens: Tensor | None) -> Tensor | None:
        """Sampled tokens on the host, where they are reported; the host does not wait for them."""
        if tokens is None or not self._reports:
            return None
        if self._device.type == "cpu":
            return tokens
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        return host.copy_(tokens, non_blocking=True)

    def _hold_up(self, delay: tuple[int, float] | None) -> None:
        """Do nothing for the seconds of `delay` where it is meant for this rank; on a GPU it is the
        GPU that does nothing."""
        if delay is None or delay[0] != self._communicator.context.rank:
            return
        if self._device.type == "cpu":
            time.sleep(delay[1])
        else:
            torch.cuda._sleep(int(delay[1] * SLEEP_CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
