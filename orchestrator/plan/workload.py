"""The requests of a cell: the same under every strategy and engine.

Fixed lengths are random token ids from a seed of (seed, lengths, concurrency); a dataset is served
in its own order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Scenario
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.dataset import Prompt, read_prompts
from orchestrator.plan.models import ResolvedModel
from strategies.shapes import Load
from workers.messages import Request, Work

# A warm-up fills every seat of the closed loop with prompts of full length, and makes this many
# tokens of each.
WARMUP_OUTPUT_LEN = 16
# Tells the warm-up's random prompts from the measured ones.
MEASURED, WARMUP = 0, 1


class Workload:
    """Makes the work of each cell of an experiment. Reads the dataset, if there is one, once.

    Raises UserError for prompts that `model` cannot serve: empty, too long, or with unknown token
    ids.
    """

    def __init__(self, experiment: Experiment, model: ResolvedModel) -> None:
        self.experiment = experiment
        self.model = model
        asked = experiment.ignore_eos
        self.ignore_eos = experiment.dataset_path is None if asked is None else asked
        self._dataset = self._read_dataset() if experiment.dataset_path else ()

    def work(self, scenario: Scenario, max_concurrency: int, count: int | None = None) -> Work:
        """What a run of one cell serves: equal for equal seed, lengths, concurrency and count.

        count: requests, as many as were asked for or as are in flight where it is None. The
        requests of a smaller count are the first ones of a larger one.
        """
        requests = self._requests(scenario, max_concurrency, MEASURED, count)
        return Work(tuple(self._timed(requests)), max_concurrency, self.ignore_eos)

    def warmup(self, scenario: Scenario, max_concurrency: int) -> Work:
        """What is served before the first run of a cell."""
        requests = self._requests(scenario, max_concurrency, WARMUP)[:max_concurrency]
        short = (
            replace(one, output_len=min(one.output_len, WARMUP_OUTPUT_LEN)) for one in requests
        )
        return Work(tuple(short), max_concurrency, self.ignore_eos)

    def load(self) -> Load:
        """The heaviest load of all cells: the longest request at the highest concurrency."""
        lengths = [(len(prompt.tokens), prompt.output_len) for prompt in self._dataset]
        if not self._dataset:
            scenarios = self.experiment.scenarios
            for scenario in scenarios:
                self._check_scenario(scenario)
            lengths = [(scenario.input_len, scenario.output_len) for scenario in scenarios]
        return Load(*max(lengths, key=sum), max(self.experiment.max_concurrency))

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all cells."""
        if self._dataset:
            return max(len(prompt.tokens) for prompt in self._dataset)
        return max(scenario.input_len for scenario in self.experiment.scenarios)

    def _requests(
        self, scenario: Scenario, max_concurrency: int, stream: int, count: int | None = None
    ) -> list[Request]:
        if self._dataset:
            return self._dataset_requests(self._dataset)
        self._check_scenario(scenario)
        lengths = (scenario.input_len, scenario.output_len)
        seed = (self.experiment.seed, *lengths, max_concurrency, stream)
        number = count or self.experiment.num_prompts or max_concurrency
        rows = random_tokens(seed, number, scenario.input_len, self.model)
        return [Request(i, tuple(row), scenario.output_len) for i, row in enumerate(rows)]

    def _dataset_requests(self, dataset: Sequence[Prompt]) -> list[Request]:
        """The prompts in their own order, from the start again where more are asked for."""
        count = self.experiment.num_prompts or len(dataset)
        prompts = itertools.islice(itertools.cycle(dataset), count)
        return [Request(i, prompt.tokens, prompt.output_len) for i, prompt in enumerate(prompts)]

    def _timed(self, requests: list[Request]) -> list[Request]:
        """The requests, with times of arrival if a rate was asked for. The times are the same for
        every layout."""
        rate = self.experiment.request_rate
        if rate is None:
            return requests
        burstiness, seed = self.experiment.burstiness, self.experiment.seed
        times = arrival_times(len(requests), rate, burstiness, seed)
        return [replace(request, arrival_s=at) for request, at in zip(requests, times, strict=True)]

    def _read_dataset(self) -> tuple[Prompt, ...]:
        path = self.experiment.dataset_path
        assert path is not None
        default = self.experiment.output_len
        prompts = tuple(
            itertools.islice(read_prompts(path, self.model, default), self.experiment.num_prompts)
        )
        if not prompts:
            raise UserError(f"{path}: there is no prompt in it")
        for prompt in prompts:
            self._check_prompt(prompt)
        return prompts

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.tokens:
            raise UserError(f"{prompt.where}: the prompt is empty")
        last = self.model.shape.vocab_size - 1
        wrong = next((token for token in prompt.tokens if not 0 <= token <= last), None)
        if wrong is not None:
            raise UserError(
                f"{prompt.where}: the token id {wrong} is outside the vocabulary of "
                f"{self.model.name} (0 to {last})"
            )
        self._check_lengths(prompt.where, len(prompt.tokens), prompt.output_len)

    def _check_scenario(self, scenario: Scenario) -> None:
        self._check_lengths(f"scenario {scenario.name}", scenario.input_len, scenario.output_len)

    def _check_lengths(self, what: str, input_len: int, output_len: int) -> None:
        limit = self.model.shape.max_positions
        if input_len + output_len > limit:
            raise UserError(
                f"{what}: {input_len} prompt + {output_len} output tokens = "
                f"{input_len + output_len}, "
                f"but {self.model.name} has {limit} positions; use shorter lengths"
            )


def random_tokens(
    seed: Sequence[int], count: int, length: int, model: ResolvedModel
) -> list[list[int]]:
    """`count` rows of `length` token ids, uniform over the vocabulary without the special tokens.
    A larger count adds rows and changes none."""
    allowed = np.setdiff1d(
        np.arange(model.shape.vocab_size), np.array(model.special_ids, dtype=np.int64)
    )
    picks = np.random.default_rng(seed).integers(len(allowed), size=(count, length))
    rows: list[list[int]] = allowed[picks].tolist()
    return rows
