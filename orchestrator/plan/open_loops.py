"""The requests of an open loop by their lengths alone: of a trace, of a dataset, or of lengths that
were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Scenario
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.models import ResolvedModel
from orchestrator.plan.prompts import read_prompts
from orchestrator.plan.workload import check_counts, longest_input, mixed_lengths

REQUESTS = 300  # unless it is said how many
Timed = tuple[float, int, int]


def is_open(experiment: Experiment) -> bool:
    """Whether requests may arrive by the clock."""
    return experiment.request_rate is not None or experiment.dataset_path is not None


def timed_requests(
    experiment: Experiment, scenario: Scenario, max_concurrency: int, model: ResolvedModel
) -> list[Timed]:
    """(seconds since the start, tokens in, tokens out) of each request: those that a run has of as
    many of them.

    Raises UserError for what a run refuses of a dataset, for conversations, and for one that has no
    times where no rate is given.
    """
    if experiment.dataset_path is not None:
        return _of_dataset(experiment, model)
    count = experiment.num_prompts or REQUESTS
    lengths = [(scenario.input_len, scenario.output_len)] * count
    if scenario.mixed:
        lengths = mixed_lengths(experiment.seed, scenario.mixed, max_concurrency, count)
    return _at_rate(experiment, lengths)


def longest_prompt(experiment: Experiment, timed: Sequence[Timed]) -> int:
    """Tokens of the longest prompt that a run of these requests is made ready for."""
    if experiment.dataset_path is not None:
        return max(read for _, read, _ in timed)
    return longest_input(experiment)


def _of_dataset(experiment: Experiment, model: ResolvedModel) -> list[Timed]:
    """Its first REQUESTS, or as many as are asked for: from the start again where it has fewer."""
    count, path = experiment.num_prompts, experiment.dataset_path
    first = experiment.model_copy(update={"num_prompts": count or REQUESTS})
    found = read_prompts(first, model)
    if found.reuse == "conversation":
        raise UserError(f"{path}: nothing is predicted of conversations; leave --multi-turn out")
    check_counts(experiment, found)
    if not found.is_trace and experiment.request_rate is None:
        raise UserError(f"{path}: the dataset has no times of arrival; give --request-rate")
    prompts = itertools.islice(itertools.cycle(found.served), count or len(found.served))
    served = [(one.arrival_s, len(one.tokens), one.output_len) for one in prompts]
    timed = [(at, read, made) for at, read, made in served if at is not None]
    return timed or _at_rate(experiment, [(read, made) for _, read, made in served])


def _at_rate(experiment: Experiment, lengths: Sequence[tuple[int, int]]) -> list[Timed]:
    rate = experiment.request_rate
    assert rate is not None, "an open loop without times has a rate"
    times = arrival_times(len(lengths), rate, experiment.burstiness, experiment.seed)
    return [(at, *both) for at, both in zip(times, lengths, strict=True)]
