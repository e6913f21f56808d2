"""One run of vLLM's engine: handing requests in, and the tables of what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from workers.engines.vllm.versions import cached_tokens, index_of
from workers.line import Line
from workers.messages import Request, Work
from workers.progress import Progress
from workers.records import DECODE, PREFILL, REQUESTS, STEPS, RequestRow, StepRow

SETTLE_S = 0.05  # for the empty step in which vLLM forgets its last requests
RESET_S = 10.0  # most that is waited for it to forget them


@dataclass(slots=True)
class Token:
    """Tokens of one request that one step brought. at_s: seconds of `time.perf_counter`."""

    index: int
    ids: Sequence[int]
    at_s: float


@dataclass(slots=True)
class Watch:
    """Stands between vLLM's front end and its engine core, and keeps each of the core's outputs
    that is of this run.

    The core stamps them by `time.monotonic`, which is the clock of `time.perf_counter` here: see
    `check_clocks`. ends_s: when each step ended. after: request -> those that had to end before it
    arrived. admitted_s: request -> when it was handed in, in seconds since the start of the run; of
    an open loop.
    """

    progress: Progress
    began_s: float = field(default_factory=time.perf_counter)
    tokens: list[Token] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    cached: dict[int, int] = field(default_factory=dict)
    after: dict[int, Sequence[int]] = field(default_factory=dict)
    admitted_s: dict[int, float] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def keep(self, outputs: Any) -> None:
        """Keep the EngineCoreOutputs of one step."""
        if outputs.timestamp < self.began_s:
            return
        first = False
        for one in outputs.outputs:
            index = index_of(one.request_id)
            first |= index not in self._seen
            self._seen.add(index)
            self.cached[index] = max(self.cached.get(index, 0), cached_tokens(one))
            if one.new_token_ids:
                self.tokens.append(Token(index, list(one.new_token_ids), outputs.timestamp))
        if (stats := outputs.scheduler_stats) is not None:
            self.ends_s.append(outputs.timestamp)
            made = sum(len(one.new_token_ids) for one in outputs.outputs)
            self.progress.step(
                outputs.timestamp,
                PREFILL if first else DECODE,
                made,
                stats.num_running_reqs,
                stats.num_waiting_reqs,
            )

    def by_request(self) -> dict[int, tuple[list[int], list[float]]]:
        """Request -> its tokens, and the time of each in seconds since the start of the run."""
        found: dict[int, tuple[list[int], list[float]]] = {}
        for token in self.tokens:
            ids, times = found.setdefault(token.index, ([], []))
            ids.extend(token.ids)
            times.extend([token.at_s - self.began_s] * len(token.ids))
        return found


def check_clocks() -> None:
    """Raise RuntimeError where vLLM's stamps are not of our clock."""
    names = {time.get_clock_info(name).implementation for name in ("monotonic", "perf_counter")}
    if len(names) > 1:
        raise RuntimeError(
            f"vLLM stamps tokens by time.monotonic, which here is another clock than "
            f"time.perf_counter ({' and '.join(sorted(names))}); run on Linux"
        )


def serve(engine: Any, work: Work, params: Any, progress: Progress, is_open: bool) -> Watch:
    """Serve a replica's share of a run.

    engine: vLLM's LLMEngine, whose workers record. params: makes the SamplingParams of a request.
    is_open: whether the loop of the whole layout is, which may have all that arrive late elsewhere.
    """
    forget(engine)
    engine.collective_rpc("orchestrator_begin", args=(work.observe,))
    core = engine.engine_core
    watch, take = Watch(progress), core.get_output
    progress.begin(watch.began_s)

    def kept() -> Any:
        outputs = take()
        watch.keep(outputs)
        return outputs

    core.get_output = kept
    try:
        Client(engine, work, params, watch, is_open).run()
    finally:
        del core.get_output
    return watch


class Client:
    """Hands requests to vLLM, each when it may go: no more in flight than `max_concurrency` says,
    none before its time or before the reply that it is after."""

    def __init__(self, engine: Any, work: Work, params: Any, watch: Watch, is_open: bool) -> None:
        self._engine, self._params, self._watch = engine, params, watch
        self._line, self._cache_of = Line(work.requests, is_open), work.cache_of()
        self._is_open = is_open
        # Each free seat with the request that had it last.
        self._free: deque[int | None] = deque([None] * work.max_concurrency)
        self._in_flight = 0

    def run(self) -> None:
        """Serve all requests."""
        while self._line or self._in_flight:
            self._hand_in()
            if self._waits_for_output():
                for index in _ended(self._engine.step()):
                    self._in_flight -= 1
                    self._free.append(index)
                    self._line.end(index)

    def _hand_in(self) -> None:
        if self._is_open:
            self._line.arrive(self._now())
        while self._free and self._line.next is not None:
            request, before = self._line.take(), self._free.popleft()
            seat = None if self._is_open else before
            after = [one for one in (seat, request.after) if one is not None]
            self._watch.after[request.index] = after
            add(self._engine, request, self._params, str(self._cache_of[request.index]))
            self._in_flight += 1
            if self._is_open:
                self._watch.admitted_s[request.index] = self._now()

    def _waits_for_output(self) -> bool:
        """Wait for an output of vLLM, but not beyond the next arrival that may be handed in;
        whether there is an output."""
        at = self._line.next_arrival_s if self._free else None
        if at is None:
            return True  # a step waits for it
        left = max(at - self._now(), 0.0)
        if self._in_flight:
            return has_output(self._engine.engine_core, left)
        time.sleep(left)
        return False

    def _now(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._watch.began_s


def has_output(core: Any, timeout_s: float) -> bool:
    """Whether the client of vLLM's engine core has an output, for which it waits so long. It keeps
    them in a `queue.Queue`."""
    outputs = core.outputs_queue
    with outputs.not_empty:
        return bool(outputs.not_empty.wait_for(lambda: outputs.queue, timeout_s))


def _ended(outputs: Sequence[Any]) -> Iterator[int]:
    return (index_of(one.request_id) for one in outputs if one.finished)


def add(engine: Any, request: Request, params: Any, salt: str) -> None:
    """Hand a request to vLLM. salt: it finds only blocks of the prefix cache that have the same."""
    prompt = {"prompt_token_ids": list(request.prompt), "cache_salt": salt}
    engine.add_request(str(request.index), prompt, params(request))


def forget(engine: Any) -> None:
    """Empty the prefix cache, which prompts of an earlier run would find themselves in. Raises
    RuntimeError where vLLM does not."""
    time.sleep(SETTLE_S)
    deadline = time.monotonic() + RESET_S
    while engine.reset_prefix_cache() is False:  # blocks of the last requests are still held
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"vLLM did not reset its prefix cache within {RESET_S:g} s; the run would find "
                "prompts of earlier ones in it"
            )
        time.sleep(SETTLE_S)


# -- tables


def requests_table(watch: Watch, work: Work, replica: int) -> pa.Table:
    """REQUESTS of a replica. Raises RuntimeError where a prompt was found in the prefix cache and
    must not be, or a request made no token."""
    found = watch.by_request()
    reused = sorted(index for index, count in watch.cached.items() if count)
    if reused and work.reuse is None:
        raise RuntimeError(
            f"vLLM found tokens of request {reused[0]} in its prefix cache, so it did less work "
            "than was asked for"
        )
    if silent := [one.index for one in work.requests if one.index not in found]:
        raise RuntimeError(f"vLLM made no token for request {silent[0]}")
    return REQUESTS.make(
        RequestRow(
            request_index=one.index,
            replica=replica,
            input_len=len(one.prompt),
            cached_tokens=watch.cached.get(one.index, 0),
            output_len=len(found[one.index][0]),
            arrival_s=_arrival(watch, one, found),
            admitted_s=watch.admitted_s.get(one.index),
            token_times_s=found[one.index][1],
            output_token_ids=found[one.index][0],
        )
        for one in sorted(work.requests, key=lambda one: one.index)
    )


def _arrival(
    watch: Watch, request: Request, found: dict[int, tuple[list[int], list[float]]]
) -> float:
    """As scheduled, and not before those ended that it was let in after."""
    ends = [found[one][1][-1] for one in watch.after[request.index]]
    return max([request.arrival_s, *ends])


def steps_table(watch: Watch, rank: int, counts: Sequence[Sequence[int]]) -> pa.Table:
    """STEPS of a rank: what its worker counted, and when the engine core had its outputs, which is
    the same for every rank. Empty where the worker has fewer steps than ended.

    counts: [requests, tokens, of these of prompts] of each step, in order.
    """
    if len(counts) < len(watch.ends_s):
        return STEPS.make([])
    ended = zip(counts, watch.ends_s, strict=False)  # a last one may not have ended yet
    taken = [(one, end) for one, end in ended if one[1]]
    return STEPS.make(
        StepRow(
            rank=rank,
            step=number,
            phase=PREFILL if prompts else DECODE,
            micro_batch=0,
            num_requests=requests,
            num_tokens=tokens,
            end_s=end - watch.began_s,
        )
        for number, ((requests, tokens, prompts), end) in enumerate(taken)
    )
