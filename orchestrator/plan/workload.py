"""The requests of a cell: the same under every strategy and engine.

Without a dataset, prompts are random token ids from a seed of (seed, lengths, concurrency); a
dataset is served in its own order, a trace also at its own times.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Lengths, Scenario
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.prompts import Prompt, Prompts, allowed_tokens, read_prompts, too_long
from strategies.shapes import Load
from workers.messages import Request, Work

# A warm-up fills every seat of the closed loop with prompts of full length, and makes this many
# tokens of each.
WARMUP_OUTPUT_LEN = 16
# Tells the warm-up's random prompts from the measured ones.
MEASURED, WARMUP = 0, 1


class Workload:
    """Makes the work of each cell of an experiment. Reads the dataset, if there is one, once.

    Raises UserError for what `read_prompts` refuses, and for lengths that `model` cannot serve.
    """

    def __init__(self, experiment: Experiment, model: ResolvedModel) -> None:
        self.experiment = experiment
        self.model = model
        asked = experiment.ignore_eos
        self._dataset = Prompts(())
        if experiment.dataset_path:
            self._dataset = read_prompts(experiment, model)
            check_counts(experiment, self._dataset)
        # Lengths are what is asked for; in a conversation, those of the replies of the dataset.
        whole = experiment.dataset_path is None or self.is_trace or experiment.multi_turn
        self.ignore_eos = whole if asked is None else asked

    @property
    def is_trace(self) -> bool:
        """Whether requests arrive at the times of a trace."""
        return self._dataset.is_trace

    @property
    def has_turns(self) -> bool:
        """Whether requests wait for the reply to another one."""
        return self._dataset.reuse == "conversation"

    @property
    def is_open(self) -> bool:
        """Whether requests arrive by the clock."""
        return self.is_trace or self.experiment.request_rate is not None

    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the dataset."""
        return tuple(self._dataset.remarks())

    def work(self, scenario: Scenario, max_concurrency: int, count: int | None = None) -> Work:
        """What a run of one cell serves: equal for equal seed, lengths, concurrency and count.

        count: requests, as many as were asked for or as are in flight where it is None. The
        requests of a smaller count are the first ones of a larger one. Raises UserError where the
        last one arrives when the run is timed out.
        """
        requests = self._requests(scenario, max_concurrency, MEASURED, count)
        timed, reuse = tuple(self._timed(requests)), self._dataset.reuse
        self._check_time(timed)
        return Work(timed, max_concurrency, self.ignore_eos, reuse)

    def warmup(self, scenario: Scenario, max_concurrency: int) -> Work:
        """What is served before the first run of a cell. Nothing in it waits."""
        requests = self._requests(scenario, max_concurrency, WARMUP)[:max_concurrency]
        short = (
            replace(
                one, output_len=min(one.output_len, WARMUP_OUTPUT_LEN), arrival_s=0.0, after=None
            )
            for one in requests
        )
        return Work(tuple(short), max_concurrency, self.ignore_eos)

    def load(self) -> Load:
        """The heaviest load of all cells: the longest request at the highest concurrency."""
        lengths = [(len(prompt.tokens), prompt.output_len) for prompt in self._dataset.served]
        for scenario in () if lengths else self.experiment.scenarios:
            check_scenario(scenario, self.model)
        lengths = lengths or [longest(scenario) for scenario in self.experiment.scenarios]
        return Load(*max(lengths, key=sum), max(self.experiment.max_concurrency))

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all cells."""
        if self._dataset.served:
            return max(len(prompt.tokens) for prompt in self._dataset.served)
        return longest_input(self.experiment)

    def _requests(
        self, scenario: Scenario, max_concurrency: int, stream: int, count: int | None = None
    ) -> list[Request]:
        if self._dataset.conversations:
            return self._dataset_requests(self._dataset.conversations)
        check_scenario(scenario, self.model)
        number = count or self.experiment.num_prompts or max_concurrency
        if scenario.mixed:
            return self._mixed_requests(*scenario.mixed, (max_concurrency, stream), number)
        lengths = (scenario.input_len, scenario.output_len)
        seed = (self.experiment.seed, *lengths, max_concurrency, stream)
        rows = random_tokens(seed, number, scenario.input_len, self.model)
        return [Request(i, tuple(row), scenario.output_len) for i, row in enumerate(rows)]

    def _mixed_requests(
        self, inputs: Lengths, outputs: Lengths, stream: tuple[int, int], count: int
    ) -> list[Request]:
        """Lengths and tokens have random numbers of their own each, so that a larger count adds
        requests and changes none."""
        seed = _seed_of(self.experiment.seed, inputs, outputs, stream)
        prompts, made = _lengths(seed, inputs, outputs, count)
        (row,) = random_tokens(seed, 1, int(prompts.sum()), self.model)
        ends = np.cumsum(prompts).tolist()
        return [
            Request(i, tuple(row[end - length : end]), output_len)
            for i, (end, length, output_len) in enumerate(
                zip(ends, prompts.tolist(), made.tolist(), strict=True)
            )
        ]

    def _dataset_requests(self, dataset: Sequence[Sequence[Prompt]]) -> list[Request]:
        """The conversations in their own order, from the start again where more are asked for; a
        turn is after the one before it."""
        count, made = self.experiment.num_prompts or len(dataset), list[Request]()
        for turns in itertools.islice(itertools.cycle(dataset), count):
            for turn, prompt in enumerate(turns):
                index, at = len(made), prompt.arrival_s or 0.0
                after = index - 1 if turn else None
                made.append(Request(index, prompt.tokens, prompt.output_len, at, after))
        return made

    def _timed(self, requests: list[Request]) -> list[Request]:
        """The requests, with times of arrival if a rate was asked for: of those that are after no
        other one. The times are the same for every layout."""
        rate = self.experiment.request_rate
        if rate is None:
            return requests
        burstiness, seed = self.experiment.burstiness, self.experiment.seed
        count = sum(one.after is None for one in requests)
        times = iter(arrival_times(count, rate, burstiness, seed))
        return [
            replace(one, arrival_s=next(times)) if one.after is None else one for one in requests
        ]

    def _check_time(self, requests: Sequence[Request]) -> None:
        last, timeout = max(one.arrival_s for one in requests), self.experiment.timeout
        if last >= timeout:
            faster = "--trace-window or --trace-speed" if self.is_trace else "--request-rate"
            raise UserError(
                f"the last request arrives after {last:.4g} s, and --timeout ends a run after "
                f"{timeout:g} s; give a longer --timeout, a smaller --num-prompts, or another "
                f"{faster}"
            )


def check_counts(experiment: Experiment, dataset: Prompts) -> None:
    """Raise UserError for more requests of a trace than it has, and for lengths, a rate or a search
    of one: it is served once, as it is, at its own times."""
    if not dataset.is_trace:
        return
    asked, there = experiment.num_prompts or 0, len(dataset.served)
    if asked > there:
        raise UserError(
            f"num_prompts asks for {asked} requests of a trace that has {there}; ask for no more, "
            "or leave num_prompts out"
        )
    if experiment.output_len is not None:
        raise UserError("a trace brings its own lengths; leave output_len out")
    if experiment.request_rate is not None:
        raise UserError("a trace brings its own times of arrival; leave request_rate out")
    if experiment.find_rate:
        raise UserError(
            "a trace brings its own times of arrival, so there is no rate to search; leave "
            "find_rate out, and give trace_speed to have them arrive faster"
        )


def check_scenario(scenario: Scenario, model: ResolvedModel) -> None:
    """Raise UserError for requests of more tokens than the model has positions."""
    lengths = longest(scenario)
    if sum(lengths) > model.shape.max_positions:
        raise UserError(too_long(f"scenario {scenario.name}", *lengths, model))


def longest_input(experiment: Experiment) -> int:
    """Most tokens of a prompt of all cells without a dataset."""
    return max(longest(scenario)[0] for scenario in experiment.scenarios)


def longest(scenario: Scenario) -> tuple[int, int]:
    """Most tokens of a prompt and of an output."""
    if scenario.mixed is None:
        return scenario.input_len, scenario.output_len
    inputs, outputs = scenario.mixed
    return inputs.high, outputs.high


def drawn(lengths: Lengths, seed: Sequence[int], count: int) -> np.ndarray:
    """int64 [count], lengths of that distribution."""
    random = np.random.default_rng(seed)
    if lengths.normal is None:
        return random.integers(lengths.low, lengths.high, size=count, endpoint=True)
    found = random.normal(*lengths.normal, size=count)
    return np.clip(np.rint(found), lengths.low, lengths.high).astype(np.int64)


def mixed_lengths(
    seed: int, of: tuple[Lengths, Lengths], max_concurrency: int, count: int
) -> list[tuple[int, int]]:
    """Tokens in and out of `count` measured requests, without the tokens. of: those in, those
    out."""
    whole = _seed_of(seed, *of, (max_concurrency, MEASURED))
    prompts, made = _lengths(whole, *of, count)
    return list(zip(prompts.tolist(), made.tolist(), strict=True))


def _seed_of(
    seed: int, inputs: Lengths, outputs: Lengths, stream: tuple[int, int]
) -> tuple[int, ...]:
    return (seed, inputs.low, inputs.high, outputs.low, outputs.high, *stream)


def _lengths(
    seed: Sequence[int], inputs: Lengths, outputs: Lengths, count: int
) -> tuple[np.ndarray, np.ndarray]:
    return drawn(inputs, (*seed, 0), count), drawn(outputs, (*seed, 1), count)


def random_tokens(
    seed: Sequence[int], count: int, length: int, model: ResolvedModel
) -> list[list[int]]:
    """`count` rows of `length` token ids, uniform over the vocabulary without the special tokens.
    A larger count adds rows and changes none."""
    allowed = allowed_tokens(model)
    picks = np.random.default_rng(seed).integers(len(allowed), size=(count, length))
    rows: list[list[int]] = allowed[picks].tolist()
    return rows
