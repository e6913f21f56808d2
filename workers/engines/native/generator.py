"""The loop of the engine `torch`: steps in turn, tokens back from the last stage, and the report.
It imports without torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from workers.clock import Clock
from workers.device import idle, memory_swing, peak_memory, reset_peak, synchronize, to_host
from workers.engines.native.arrivals import Arrivals, replica_group
from workers.engines.native.examining import NEVER, REQUESTS, first_broken
from workers.engines.native.log import Log, collectives_table, requests_table, steps_table
from workers.engines.native.scheduler import Chunk, Limits, Scheduler, Step
from workers.messages import RankReport, Work
from workers.probes.probe import Probe, probe_for
from workers.records import DECODE, DRAIN

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

    from workers.communicator import Communicator
    from workers.engines.native.runner import Runner

# Steps that the host may be ahead of the device in an open loop, where the clock decides which
# requests are let in.
RUN_AHEAD = 2


class Pending(NamedTuple):
    """A step whose sampled tokens have not been fetched. tokens: [sampled] int64, None where they
    are still to be received."""

    step: Step
    tokens: Tensor | None


@dataclass(slots=True)
class Run:
    """One run of this rank. work: its replica's share. arrivals: None in a closed loop. before: see
    `memory_swing`. pending: steps whose tokens are still to be fetched, oldest first. until: the
    step after which it ends; None: it ends when all requests are served."""

    work: Work
    scheduler: Scheduler
    probe: Probe
    clock: Clock
    log: Log
    arrivals: Arrivals | None
    before: Sequence[int] = ()
    until: int | None = None
    pending: deque[Pending] = field(default_factory=deque)

    @property
    def stops_at_eos(self) -> bool:
        """Whether a sequence ends at an end-of-text token. An observed run goes on, as it must not
        wait for its tokens."""
        return not (self.work.ignore_eos or self.work.observe)

    @property
    def is_over(self) -> bool:
        """Whether its last step was taken, where one was named."""
        return self.until is not None and len(self.log.steps) > self.until

    def unfetched(self, micro_batch: int) -> int:
        """Pending steps up to the newest one of `micro_batch`."""
        return self._up_to(lambda step: step.micro_batch == micro_batch)

    def unanswered(self, chunks: Sequence[Chunk]) -> int:
        """Pending steps up to the newest one with a reply that one of `chunks` goes on from."""
        replies = [chunk.sequence.reply for chunk in chunks if chunk.sequence.reply]
        return self._up_to(lambda step: any(one in step.sampled for one in replies))

    def _up_to(self, wanted: Callable[[Step], bool]) -> int:
        return max((i + 1 for i, one in enumerate(self.pending) if wanted(one.step)), default=0)

    def overdue(self, newest: int) -> int:
        """Pending steps up to the step `newest`."""
        return sum(pending.step.index <= newest for pending in self.pending)


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
        """Serve this rank's share of `work`. Raises ValueError where a request can never fit, and
        NotFinite where logits are NaN or infinite; not with collectives left out, which gives
        anything."""
        run = self._serve(work)
        if not self._communicator.ablated:
            self._check(run.log, work)
        if work.count:
            self._runner.count_kernels(run.log.steps)
        return self._report(run)

    def _check(self, log: Log, work: Work) -> None:
        """Raise NotFinite where logits were not finite. All ranks take the run again together, to
        say which layer it was."""
        broken = self._communicator.context.smallest(first_broken(log))
        if broken == NEVER:
            return
        step, request = divmod(broken, REQUESTS)
        with self._runner.examined() as examination:
            self._serve(replace(work, observe=False), until=step)
        examination.tell(step, request)

    def _serve(self, work: Work, until: int | None = None) -> Run:
        """A run of this rank's share of `work`. until: the step that is its last one."""
        communicator, context = self._communicator, self._communicator.context
        share = work.share(self._replica, context.placement.degree("dp"))
        scheduler = Scheduler(share.requests, share.max_concurrency, self._limits, work.is_open)
        probe = probe_for(work.observe, self._device, communicator)
        communicator.reset()
        before = reset_peak([self._device])
        if work.is_open and self._replica_group is None:
            self._replica_group = replica_group(context)
        with probe.watching():
            context.barrier()
            synchronize(self._device)
            clock, log = Clock(self._device), Log()
            arrivals = self._arrivals(work, clock)
            run = Run(share, scheduler, probe, clock, log, arrivals, before, until)
            context.progress.begin(clock.start, self._limits.pages, self._reports)
            self._loop(run)
            communicator.flush()
            synchronize(self._device)
        return run

    def _arrivals(self, work: Work, clock: Clock) -> Arrivals | None:
        """work: of the whole layout, where a share may be empty."""
        if not work.is_open:
            return None
        assert self._replica_group is not None
        group, source = self._replica_group
        decides = source == self._communicator.context.rank
        return Arrivals(clock.now, decides, source, group)

    def _report(self, run: Run) -> RankReport:
        rank, clock = self._communicator.context.rank, run.clock
        requests = requests_table(run.log, clock, self._replica) if self._reports else None
        return RankReport(
            rank=rank,
            requests=requests,
            steps=steps_table(run.log, clock, rank),
            collectives=collectives_table(self._communicator),
            peak_memory_bytes=peak_memory([self._device]),
            memory_swing_bytes=memory_swing([self._device], run.before),
            spans=run.probe.spans(),
            began_s=clock.began_s,
            attention=self._runner.attention_times(run.log.steps) if run.work.observe else (),
        )

    # -- the loop

    def _loop(self, run: Run) -> None:
        while not run.is_over and (micro_batch := self._next_micro_batch(run)) is not None:
            if run.stops_at_eos:
                self._fetch(run, run.unfetched(micro_batch))
            step = run.scheduler.next_step(micro_batch)
            if step is not None:
                self._take(run, step)
        self._drain(run)

    def _drain(self, run: Run) -> None:
        """Fetch the tokens of the last steps, after which there is no step to fetch them in."""
        if run.pending:
            with run.probe.step(DRAIN, len(run.log.steps)):
                self._fetch(run, len(run.pending))

    def _next_micro_batch(self, run: Run) -> int | None:
        if run.arrivals is not None:
            if run.scheduler.is_idle():  # who knows for how long
                self._drain(run)
            run.arrivals.tell(run.scheduler, lambda: run.clock.keep_up(run.log.marks, RUN_AHEAD))
        return run.scheduler.next_micro_batch()

    def _take(self, run: Run, step: Step) -> None:
        """Take one step: fetch the tokens that it needs, launch its work, pass its tokens on.

        Tokens are fetched soon where no step needs them too, as while prompts are read: the last
        stage is in a broadcast until every stage has joined it.
        """
        context, at = self._communicator.context, (step.phase, step.index, step.micro_batch)
        with (
            run.probe.step(step.phase, step.index),
            context.ranges.span("{} step {} micro-batch {}", *at),
        ):
            self._fetch(run, run.overdue(step.index - self._communicator.context.most_ahead))
            if step.phase == DECODE:
                self._fetch(run, run.unfetched(step.micro_batch))
            self._fetch(run, run.unanswered(step.chunks))
            self._carry(step)
            self._hold_up(run.work.delay)
            tokens = self._runner.run(step)
            self._pass_on(run, step, tokens)
            copy = self._copy(tokens)  # before the mark, so that it is complete when that passes
            mark = run.clock.mark()
            run.log.add(step, copy, mark)
        context.progress.step(mark, step.phase, len(step.sampled), *run.scheduler.held())

    def _carry(self, step: Step) -> None:
        """What is communicated from here on carries the tokens of `step`."""
        self._communicator.phase, self._communicator.step = step.phase, step.index

    def _pass_on(self, run: Run, step: Step, tokens: Tensor | None) -> None:
        """Send sampled tokens from the last stage to the others, and note what is to be fetched."""
        if not step.sampled:
            return
        if self._piped and self._last:
            assert tokens is not None
            self._communicator.broadcast_last(tokens)
        if run.stops_at_eos or (self._piped and not self._last):
            run.pending.append(Pending(step, tokens))

    def _fetch(self, run: Run, count: int) -> None:
        """Fetch the tokens of the `count` oldest pending steps, in the order in which they were
        sampled."""
        for _ in range(count):
            step, tokens = run.pending.popleft()
            tokens = self._received(step) if tokens is None else tokens
            if run.stops_at_eos:
                for sequence, token in zip(step.sampled, tokens.tolist(), strict=True):
                    sequence.stopped |= token in self._eos

    def _received(self, step: Step) -> Tensor:
        """The tokens of a step from the last stage."""
        self._carry(step)
        tokens = self._runner.room_for_tokens(len(step.sampled))
        self._communicator.broadcast_last(tokens)
        if self._first:
            self._runner.set_tokens(step.sampled, tokens)
        return tokens

    def _copy(self, tokens: Tensor | None) -> Tensor | None:
        """Sampled tokens on the host, where they are reported; the host does not wait for them."""
        if tokens is None or not self._reports:
            return None
        return to_host(tokens)

    def _hold_up(self, delay: tuple[int, float] | None) -> None:
        """Idle for the seconds of `delay` if it names this rank."""
        if delay is not None and delay[0] == self._communicator.context.rank:
            idle(self._device, delay[1])
