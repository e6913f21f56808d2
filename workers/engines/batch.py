"""Static batching over Transformers' `generate`, for the engines that use it: waves, left padding,
time stamps, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from workers.clock import Clock, Moment, wait
from workers.intervals import Span
from workers.messages import EnginePlan, NotFinite, Request, Work
from workers.probes.probe import TimedStep, host_spans
from workers.progress import Progress
from workers.records import DECODE, PREFILL, REQUESTS, STEPS, Call, RequestRow, StepRow

PAD = 0


def phase_of(step: int) -> str:
    """The phase of step `step` of a wave, counted from 0."""
    return DECODE if step else PREFILL


def waves(work: Work) -> list[tuple[Request, ...]]:
    """The requests in order, `max_concurrency` at a time: a static batch starts when the one before
    it has ended."""
    size = max(work.max_concurrency, 1)
    return [work.requests[i : i + size] for i in range(0, len(work.requests), size)]


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [len(prompts), longest]; the padding is on the
    left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


class Stop(StoppingCriteria):
    """Ends each row at its own length or after an end token, and calls `on_step` once a step.

    lengths: int64 [rows]. eos: int64 [n], empty to go on past end tokens. agree: takes whether
    every row of this rank is done and returns whether those of all ranks are. With it no row ends
    before all have, so that all ranks make the same number of steps.
    """

    def __init__(
        self,
        lengths: Tensor,
        eos: Tensor,
        on_step: Callable[[], None],
        agree: Callable[[bool], bool] | None,
    ) -> None:
        self._lengths, self._eos, self._on_step, self._agree = lengths, eos, on_step, agree
        self._steps = 0
        self._done = torch.zeros_like(lengths, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        self._on_step()
        self._steps += 1
        self._done = (
            self._done | (self._lengths <= self._steps) | torch.isin(input_ids[:, -1], self._eos)
        )
        if self._agree is None:
            return self._done
        return torch.full_like(self._done, self._agree(bool(self._done.all())))


class Look(LogitsProcessor):
    """Notes which rows of logits hold a value that is not finite, and waits for nothing.

    rows: of each step, [rows] bool. samples: whether tokens are drawn, which torch refuses to do
    from such rows before anything can be said of them.
    """

    def __init__(self, samples: bool) -> None:
        self._samples = samples
        self.rows: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.rows.append(~scores.sum(dim=-1, dtype=torch.float32).isfinite())
        return scores.nan_to_num() if self._samples else scores

    def check(self, wave: Sequence[Request], before: int) -> None:
        """Raise NotFinite for the first such row of a request that was still served. before: steps
        of the run before this wave."""
        for step, rows in enumerate(torch.stack(self.rows).tolist() if self.rows else ()):
            for request, broken in zip(wave, rows, strict=False):  # an empty wave has one row
                if broken and step < request.output_len:
                    raise NotFinite(
                        f"the logits of step {before + step}, request {request.index}, are not "
                        "finite (NaN or infinity); look at the weights, or use another --dtype; "
                        "the engine torch says which layer they come from"
                    )


@dataclass(frozen=True, slots=True)
class Wave:
    """Requests that were served together, and the tokens made for each.

    began_s, ends_s: when the wave began and each of its steps ended, in seconds since the start of
    the run.
    """

    requests: Sequence[Request]
    outputs: Sequence[Sequence[int]]
    began_s: float
    ends_s: Sequence[float]


@dataclass(slots=True)
class Ledger:
    """What one rank saw of a run. origin: its start, by `time.perf_counter`; durations: seconds of
    each step."""

    rank: int
    replica: int
    request_rows: list[RequestRow] = field(default_factory=list)
    step_rows: list[StepRow] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    origin: float = 0.0

    def add(self, wave: Wave) -> None:
        """Enter what a wave did: a row for each of its requests and each of its steps."""
        for request, output in zip(wave.requests, wave.outputs, strict=True):
            self.request_rows.append(self._request(wave, request, output))
        for i, end in enumerate(wave.ends_s):
            self.durations.append(end - (wave.ends_s[i - 1] if i else wave.began_s))
            self.step_rows.append(self._step(wave, i))

    def _request(self, wave: Wave, request: Request, output: Sequence[int]) -> RequestRow:
        return RequestRow(
            request_index=request.index,
            replica=self.replica,
            input_len=len(request.prompt),
            cached_tokens=0,  # none keeps the KV of a wave beyond it
            output_len=len(output),
            arrival_s=wave.began_s,
            admitted_s=None,
            token_times_s=wave.ends_s[: len(output)],
            output_token_ids=output,
        )

    def _step(self, wave: Wave, i: int) -> StepRow:
        """Step i of a wave: the first one takes the prompts, every other a token of each request
        that is not done."""
        live = sum(len(output) > i for output in wave.outputs)
        return StepRow(
            rank=self.rank,
            step=len(self.step_rows),
            phase=phase_of(i),
            micro_batch=0,
            num_requests=live,
            num_tokens=live if i else sum(len(request.prompt) for request in wave.requests),
            end_s=wave.ends_s[i],
        )

    def requests(self) -> pa.Table:
        """The table of requests."""
        return REQUESTS.make(self.request_rows)

    def steps(self) -> pa.Table:
        """The table of steps."""
        return STEPS.make(self.step_rows)

    def spans(self, calls: Sequence[Call] = (), blocked: Sequence[Span] = ()) -> pa.Table:
        """The spans table of the run. calls: the collectives that were timed on the host. blocked:
        when it was held up; both in seconds of `time.perf_counter`."""
        ends = [self.origin + row.end_s for row in self.step_rows]
        steps = [
            TimedStep(row.phase, row.step, end - spent, end)
            for row, end, spent in zip(self.step_rows, ends, self.durations, strict=True)
        ]
        return host_spans(self.rank, steps, calls, blocked)


@dataclass(slots=True)
class Batcher:
    """Serves runs with `model.generate`, one wave after another.

    model: of Transformers, with `generate`. on_phase: called with PREFILL when a wave starts and
    with DECODE after each step. agree: see `Stop`. progress: gets each step; there a row counts up
    to its length, even after an end token. reports: whether this rank reports the requests.
    """

    model: Any
    plan: EnginePlan
    device: torch.device
    on_phase: Callable[[str], None] = lambda phase: None
    agree: Callable[[bool], bool] | None = None
    progress: Progress = field(default_factory=Progress)
    reports: bool = True

    def __post_init__(self) -> None:
        greedy: dict[str, object] = {"do_sample": False}
        sampling = {
            "do_sample": True,
            "temperature": self.plan.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
        chosen = sampling if self.plan.temperature > 0 else greedy
        # The checkpoint's own generation config would bring its end tokens and sampling filters.
        config = GenerationConfig(pad_token_id=PAD, **chosen)  # type: ignore[no-untyped-call]
        self.model.generation_config = config

    def serve(self, work: Work, ledger: Ledger, rounds: int = 0) -> None:
        """Serve `work` and enter it in `ledger`; `rounds`: the number of waves to take part in,
        even where no request is left."""
        torch.manual_seed(self.plan.seed + ledger.replica)
        batches, waiting = waves(work), len(work.requests)
        clock = Clock(self.device)
        self.progress.begin(clock.start, reports=self.reports)
        ledger.origin = clock.began_s
        for requests in batches + [()] * (rounds - len(batches)):
            began, waiting = clock.now(), waiting - len(requests)
            outputs, ends = self._generate(requests, work, waiting, len(ledger.step_rows))
            ledger.add(Wave(requests, outputs, began, [began + end for end in ends]))

    def _generate(
        self, wave: Sequence[Request], work: Work, waiting: int, taken: int
    ) -> tuple[list[list[int]], list[float]]:
        """Each request's output, and when each step ended in seconds since the call. An empty wave
        is one row of padding. waiting: requests of `work` that come after this wave. taken: steps
        of the run before it. Raises NotFinite."""
        eos = () if work.ignore_eos else self.plan.model.eos_token_ids
        ids, mask = left_pad([request.prompt for request in wave] or [(PAD,)], self.device)
        lengths = self._int64([request.output_len for request in wave] or [0])
        clock, marks = Clock(self.device), list[Moment]()

        def on_step() -> None:
            marks.append(clock.mark())
            self._tell(wave, len(marks) - 1, marks[-1], waiting)

        self.on_phase(PREFILL)
        look = Look(self.plan.temperature > 0)
        stop = Stop(lengths, self._int64(eos), on_step, self.agree)
        longest = max((request.output_len for request in work.requests), default=1)
        made = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=self.plan.max_len if self.agree else longest,
            stopping_criteria=StoppingCriteriaList([stop]),
            logits_processor=LogitsProcessorList([look]),
        )
        wait(marks[-1])
        look.check(wave, taken)
        rows = made[:, ids.shape[1] :].tolist()
        outputs = [
            _until(row[: request.output_len], eos)
            for request, row in zip(wave, rows, strict=False)  # an empty wave has one row
        ]
        return outputs, [clock.seconds(mark) for mark in marks]

    def _tell(self, wave: Sequence[Request], step: int, at: Moment, waiting: int) -> None:
        """Report that step `step` of a wave ends at `at`."""
        live = sum(request.output_len > step for request in wave)
        self.progress.step(at, phase_of(step), live, live, waiting)
        self.on_phase(DECODE)

    def _int64(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _until(tokens: list[int], eos: Sequence[int]) -> list[int]:
    """The tokens up to the first end token, which counts."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in eos), tokens)
